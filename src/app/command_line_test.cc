#include "app/command_line.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

#include "app/vllm_flags.h"
#include "base/temp_dir.h"

namespace weft {
namespace {

ServeOptions serve(const std::vector<std::string>& words) {
  const auto parsed = parse_serve(words, nullptr);
  EXPECT_TRUE(parsed.ok()) << (parsed.ok() ? "" : parsed.error().message);
  return parsed.ok() ? parsed->options : ServeOptions{};
}

std::string refusal(const std::vector<std::string>& words) {
  const auto parsed = parse_serve(words, nullptr);
  EXPECT_FALSE(parsed.ok());
  return parsed.ok() ? "" : parsed.error().message;
}

TEST(ServeFlags, TheTokenBudgetIsThatOfTheDeviceOrTheUsers) {
  EXPECT_EQ(batched_tokens(serve({"m"}).engine, /*gpu=*/false), 2048);
  EXPECT_EQ(batched_tokens(serve({"m"}).engine, /*gpu=*/true), 8448);
  EXPECT_EQ(batched_tokens(serve({"m", "--max-num-batched-tokens", "auto"}).engine, true), 8448);
  EXPECT_EQ(batched_tokens(serve({"m", "--max-num-batched-tokens=1k"}).engine, true), 1024);
}

TEST(ServeFlags, VllmScriptsMeanTheSame) {
  const ServeOptions o = serve({"org/model",
                                "--served-model-name",
                                "a",
                                "b",
                                "--host",
                                "127.0.0.1",
                                "--port",
                                "9000",
                                "--max_model_len",
                                "128k",
                                "--max-num-seqs=1k",
                                "--chunked-prefill-size",
                                "4k",
                                "-tp",
                                "1",
                                "--dtype",
                                "bfloat16",
                                "--no-enable-prefix-caching",
                                "--seed",
                                "7",
                                "--uvicorn-log-level",
                                "warning",
                                "--disable-log-stats",
                                "--revision",
                                "v2"});
  EXPECT_EQ(o.engine.model, "org/model@v2");
  EXPECT_EQ(o.served_model_names, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(o.port, 9000);
  EXPECT_EQ(o.engine.max_model_len, "128k");
  EXPECT_EQ(o.engine.max_num_seqs, 1024);
  EXPECT_EQ(o.engine.max_num_batched_tokens, 4096);
  EXPECT_FALSE(o.engine.prefix_caching);
  EXPECT_EQ(o.engine.seed, 7u);
  EXPECT_EQ(o.log_level, LogLevel::kWarning);
  EXPECT_FALSE(o.log_stats);
}

TEST(ServeFlags, TheModelIsNotTakenForAKey) {
  const ServeOptions before = serve({"--api-key", "secret", "org/model"});
  EXPECT_EQ(before.engine.model, "org/model");
  EXPECT_EQ(before.api_keys, std::vector<std::string>{"secret"});
  const ServeOptions after = serve({"org/model", "--api-key", "one", "two"});
  EXPECT_EQ(after.engine.model, "org/model");
  EXPECT_EQ(after.api_keys, (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(serve({"--served-model-name", "x", "y", "--model-path", "m"}).engine.model, "m");
}

TEST(ServeFlags, KeysComeFromFlagsFilesAndTheEnvironment) {
  const TempDir directory;
  const std::string path = directory.file("keys");
  std::ofstream(path) << "file-key\n";
  EXPECT_EQ(serve({"--api-key", "flag-key", "--api-key-file", path}).api_keys,
            (std::vector<std::string>{"flag-key", "file-key"}));
  EXPECT_EQ(parse_serve({}, "vllm-key")->options.api_keys, std::vector<std::string>{"vllm-key"});
  EXPECT_EQ(parse_serve({"--api-key", "k"}, "vllm-key")->options.api_keys,
            std::vector<std::string>{"k"});
  ::setenv("WEFT_API_KEY", "one two", 1);
  EXPECT_EQ(serve({}).api_keys, (std::vector<std::string>{"one", "two"}));
  ::unsetenv("WEFT_API_KEY");
  // An empty key must not mean no key.
  EXPECT_NE(refusal({"--api-key", ""}), "");
  EXPECT_NE(refusal({"--api-key="}), "");
  EXPECT_NE(refusal({"--api-key", " "}), "");
}

TEST(ServeFlags, DottedFlagsBuildJson) {
  const ServeOptions o =
      serve({"--default-chat-template-kwargs", R"({"a":1,"b":{"c":2}})",
             "--default-chat-template-kwargs.enable_thinking", "false",
             "--default-chat-template-kwargs.b.d=text", "--override-generation-config.top_k", "5"});
  const std::vector<std::pair<std::string, std::string>> expected = {
      {"a", "1"}, {"b", R"({"c":2,"d":"text"})"}, {"enable_thinking", "false"}};
  EXPECT_EQ(o.default_chat_template_kwargs, expected);
  EXPECT_EQ(o.override_generation_config, R"({"top_k":5})");
  EXPECT_NE(refusal({"--port.x", "1"}).find("--port: this flag has no dotted form"),
            std::string::npos);
  EXPECT_NE(refusal({"--override-generation-config", "[1]"}).find("not a JSON object"),
            std::string::npos);
}

TEST(ServeFlags, SpeculationIsSpeltAsVllmSpellsIt) {
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"--speculative-config",
                                 R"({"method":"mtp","num_speculative_tokens":3})"},
        {"--speculative-config.method", "mtp", "--speculative-config.num_speculative_tokens=3"},
        {"-sc", R"({"method":"mtp"})", "--speculative_config.num_speculative_tokens", "3"}}) {
    const SpeculationConfig config = serve(words).engine.speculation;
    EXPECT_EQ(config.method, SpeculationMethod::kMtp) << words[0];
    EXPECT_EQ(config.num_speculative_tokens, 3);
  }
  EXPECT_NE(refusal({"--speculative-config.methods", "mtp"}).find("unknown key 'methods'"),
            std::string::npos);
  EXPECT_NE(refusal({"--speculative-config", "mtp"}).find("not a JSON object"), std::string::npos);
  EXPECT_NE(refusal({"--num-speculative-tokens", "3"}).find("[speculation-flags]"),
            std::string::npos);
  EXPECT_FALSE(serve({"-sc", R"({"method":"naive"})"}).engine.speculation.on());
}

TEST(ServeFlags, OtherCommandsHaveTheDottedFormOfSpeculationAlone) {
  const auto expanded =
      expand_engine_words({"run", "-c", "x.y", "-sc.method", "ngram", "--image=a.png",
                           "--speculative-config", "{}", "--", "-sc"});
  ASSERT_TRUE(expanded.ok());
  EXPECT_EQ(*expanded, (std::vector<std::string>{
                           "run", "-c", "x.y", R"(--speculative-config={"method":"ngram"})",
                           "--image=a.png", "--speculative-config", "{}", "--", "-sc"}));
}

TEST(ServeFlags, KnownFlagsWarnOnceAndKeepTheirValues) {
  const auto parsed = parse_serve(
      {"m", "--gpu-memory-utilization", "0.9", "--enforce-eager", "--scheduler-delay-factor", "4",
       "--scheduler-delay-factor", "8", "-O3", "--trust-remote-code", "--cudagraph-capture-sizes",
       "1", "2", "4", "--enable-auto-tool-choice", "--block-size", "64"},
      nullptr);
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(parsed->options.engine.model, "m");
  EXPECT_EQ(parsed->options.engine.gpu_memory_utilization, 0.9);
  EXPECT_TRUE(parsed->options.engine.enforce_eager);
  const std::vector<std::string> expected = {
      "--cudagraph-capture-sizes has no meaning in weft and is ignored",
      "--optimization-level has no meaning in weft and is ignored",
      "--scheduler-delay-factor has no meaning in weft and is ignored",
      "--trust-remote-code is ignored: weft runs no code of a model"};
  EXPECT_EQ(parsed->warnings, expected);
}

TEST(ServeFlags, PublicAddressesNeedAKeyOrAWord) {
  for (const char* host : {"0.0.0.0", "::", "192.168.1.5", "example.org", "127.evil.org", ""}) {
    EXPECT_NE(refusal({"--host", host}).find("[public-without-key]"), std::string::npos) << host;
    EXPECT_EQ(serve({"--host", host, "--api-key", "k"}).host, host);
    EXPECT_TRUE(serve({"--host", host, "--allow-public"}).allow_public);
  }
  for (const char* host : {"127.0.0.1", "127.9.9.9", "::1", "localhost"}) {
    EXPECT_EQ(serve({"--host", host}).host, host);
  }
}

TEST(ServeFlags, OriginsAndPathsAreChecked) {
  EXPECT_EQ(serve({"--allowed-origins", R"(["http://a.b", "*"])"}).allowed_origins,
            (std::vector<std::string>{"http://a.b", "*"}));
  EXPECT_EQ(serve({"--allowed-origins", "http://a:1,https://b"}).allowed_origins,
            (std::vector<std::string>{"http://a:1", "https://b"}));
  EXPECT_NE(refusal({"--allowed-origins", "http://a/b"}).find("--allowed-origins"),
            std::string::npos);
  EXPECT_EQ(serve({"--root-path", "/api/"}).root_path, "/api");
  EXPECT_NE(refusal({"--root-path", "api"}).find("--root-path"), std::string::npos);
}

class ConfigFile : public testing::Test {
 protected:
  std::vector<std::string> with(const std::string& text, std::vector<std::string> words = {}) {
    std::ofstream(path_) << text;
    words.insert(words.end(), {"--config", path_});
    return words;
  }
  const TempDir directory_;
  const std::string path_ = directory_.file("config.yaml");
};

TEST_F(ConfigFile, KeysAreFlags) {
  const ServeOptions o = serve(with(R"(
model: org/model
port: 9001
max_model_len: 32k        # underscores as well
served-model-name: [one, two]
enable-prefix-caching: false
disable-log-stats: true
default-chat-template-kwargs:
  enable_thinking: false
  name: "1"
chunked-prefill-size: 4k
gpu-memory-utilization: 0.9
)"));
  EXPECT_EQ(o.engine.model, "org/model");
  EXPECT_EQ(o.port, 9001);
  EXPECT_EQ(o.engine.max_model_len, "32k");
  EXPECT_EQ(o.served_model_names, (std::vector<std::string>{"one", "two"}));
  EXPECT_EQ(o.engine.max_num_batched_tokens, 4096);
  EXPECT_FALSE(o.engine.prefix_caching);
  EXPECT_FALSE(o.log_stats);
  const std::vector<std::pair<std::string, std::string>> kwargs = {{"enable_thinking", "false"},
                                                                   {"name", "\"1\""}};
  EXPECT_EQ(o.default_chat_template_kwargs, kwargs);
}

TEST_F(ConfigFile, CommandLineThenEnvironmentThenFile) {
  ::setenv("WEFT_MAX_WAITING", "22", 1);
  ::setenv("WEFT_PORT", "2222", 1);
  const ServeOptions o =
      serve(with("port: 3333\nmax-waiting: 33\nmax-n: 3\nmodel: file\n"
                 "served-model-name: [file]\n",
                 {"m", "--port", "1111", "--served-model-name", "line"}));
  ::unsetenv("WEFT_MAX_WAITING");
  ::unsetenv("WEFT_PORT");
  EXPECT_EQ(o.port, 1111);
  EXPECT_EQ(o.max_waiting, 22);
  EXPECT_EQ(o.max_n, 3);
  EXPECT_EQ(o.engine.model, "m");
  EXPECT_EQ(o.served_model_names, std::vector<std::string>{"line"});
}

TEST_F(ConfigFile, MistakesNameTheLine) {
  EXPECT_NE(refusal(with("host: 127.0.0.1\nprot: 5\n"))
                .find("config.yaml:2: unknown key 'prot'; did you mean 'port'?"),
            std::string::npos);
  EXPECT_NE(refusal(with("port: 1\nport: 2\n")).find(":2: 'port' is there twice"),
            std::string::npos);
  EXPECT_NE(refusal(with("a: [1,\nb: }")).find("config.yaml:"), std::string::npos);
  EXPECT_NE(refusal(with("- port")).find("a mapping of flags"), std::string::npos);
  EXPECT_NE(refusal(with("allow-public: 7\n")).find("'allow-public' is true or false"),
            std::string::npos);
  EXPECT_NE(refusal(with("port:\n")).find("'port' has no value"), std::string::npos);
  EXPECT_NE(refusal(with("tensor-parallel-size: 2\n")).find("[one-device]"), std::string::npos);
  EXPECT_NE(refusal({"--config", "/nonexistent.yaml"}).find("/nonexistent.yaml"),
            std::string::npos);
}

TEST(KnownFlags, AreNotFlagsOfOursAndAreThereOnce) {
  std::set<std::string> ours;
  const CommandInfo tree = command_tree();
  ASSERT_EQ(tree.commands.front().name, "serve");
  for (const FlagInfo& flag : tree.commands.front().flags) {
    ours.insert(flag.names.begin(), flag.names.end());
  }
  std::set<std::string_view> seen;
  for (const auto& flags : {ignored_flags(), refused_flags()}) {
    for (const KnownFlag& flag : flags) {
      EXPECT_TRUE(seen.insert(flag.name).second) << flag.name;
      EXPECT_FALSE(ours.contains(std::string(flag.name))) << flag.name;
    }
  }
}

TEST(ServeFlags, TheDocumentListsThemAll) {
  std::ifstream file(std::string(WEFT_SOURCE_DIR) + "/docs/server.md");
  std::string line;
  std::set<std::string> documented;
  while (std::getline(file, line) && line != "## Flags") {
  }
  while (std::getline(file, line) && line.substr(0, 3) != "## ") {
    if (line.substr(0, 5) == "| `--") documented.insert(line.substr(3, line.find('`', 3) - 3));
  }
  std::set<std::string> flags;
  const CommandInfo tree = command_tree();
  for (const FlagInfo& flag : tree.commands.front().flags) {
    if (flag.names[0] == "--help") continue;
    flags.insert(flag.names[0]);
    std::string twin = "WEFT_";
    for (const char c : flag.names[0].substr(2)) {
      twin += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    }
    EXPECT_EQ(flag.environment, twin);
  }
  EXPECT_EQ(documented, flags);
}

TEST(Completion, HasEveryCommandAndFlag) {
  const CommandInfo tree = command_tree();
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const auto script = completion_script(tree, shell);
    ASSERT_TRUE(script.ok());
    for (const char* word : {"serve", "latency", "max-model-len", "chat-template", "avx512_bf16"}) {
      EXPECT_NE(script->find(word), std::string::npos) << shell << " " << word;
    }
    EXPECT_EQ(script->find("ssl-keyfile"), std::string::npos) << shell;
  }
  EXPECT_FALSE(completion_script(tree, "tcsh").ok());
}

}  // namespace
}  // namespace weft
