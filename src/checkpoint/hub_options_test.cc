#include <gmock/gmock.h>

#include <map>

#include "checkpoint/http_client.h"
#include "checkpoint/hub.h"
#include "checkpoint/test_files.h"

namespace weft {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;
using testing::write_file;

Result<HubOptions> options_of(const std::map<std::string, std::string>& variables) {
  return HubOptions::from_environment([&](const char* name) -> const char* {
    const auto it = variables.find(name);
    return it == variables.end() ? nullptr : it->second.c_str();
  });
}

TEST(ModelName, Forms) {
  const auto plain = ModelName::parse("Qwen/Qwen3-0.6B");
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->repo(), "Qwen/Qwen3-0.6B");
  EXPECT_EQ(plain->revision, "main");
  EXPECT_EQ(plain->text(), "Qwen/Qwen3-0.6B");
  const auto revised = ModelName::parse("a/b@refs/pr/3");
  ASSERT_TRUE(revised.ok());
  EXPECT_EQ(revised->revision, "refs/pr/3");
  EXPECT_EQ(revised->text(), "a/b@refs/pr/3");
  for (const char* text : {"",       "a",        "a/",     "/b",       "a/b/c",   "a/..",  "../b",
                           "a/b@",   "a/b@../x", "a/b@/x", "a/b@x//y", "a/b@x y", "a b/c", "a/b\n",
                           "a--b/c", "a/.b",     "a/b.",   "-a/b",     "a/b@x?y", "a/b%2f"}) {
    const auto name = ModelName::parse(text);
    ASSERT_FALSE(name.ok()) << text;
    EXPECT_EQ(name.error().kind, ErrorKind::kInvalidArgument);
  }
}

TEST(HubOptions, CacheDirectory) {
  EXPECT_EQ(options_of({{"HOME", "/h"}})->cache_dir, "/h/.cache/huggingface/hub");
  EXPECT_EQ(options_of({{"HOME", "/h"}, {"XDG_CACHE_HOME", "/x"}})->cache_dir,
            "/x/huggingface/hub");
  EXPECT_EQ(options_of({{"HOME", "/h"}, {"HF_HOME", "~/hf"}})->cache_dir, "/h/hf/hub");
  EXPECT_EQ(options_of({{"HF_HOME", "/hf"}, {"HF_HUB_CACHE", "/c"}})->cache_dir, "/c");
  EXPECT_EQ(options_of({{"HF_HOME", ""}, {"HOME", "/h"}})->cache_dir, "/h/.cache/huggingface/hub");
}

TEST(HubOptions, EndpointOfflineTimeout) {
  const auto plain = options_of({});
  EXPECT_EQ(plain->endpoint, "https://huggingface.co");
  EXPECT_FALSE(plain->offline);
  EXPECT_EQ(plain->timeout_s, 10);
  EXPECT_EQ(options_of({{"HF_ENDPOINT", "http://localhost:8080/"}})->endpoint,
            "http://localhost:8080");
  for (const char* url : {"huggingface.co", "ftp://x", "file:///etc", "https://"}) {
    const auto options = options_of({{"HF_ENDPOINT", url}});
    ASSERT_FALSE(options.ok()) << url;
    EXPECT_THAT(options.error().message, HasSubstr("HF_ENDPOINT must"));
  }
  for (const char* yes : {"1", "true", "ON", "Yes"}) {
    EXPECT_TRUE(options_of({{"HF_HUB_OFFLINE", yes}})->offline) << yes;
    EXPECT_TRUE(options_of({{"TRANSFORMERS_OFFLINE", yes}})->offline) << yes;
  }
  EXPECT_FALSE(options_of({{"HF_HUB_OFFLINE", "0"}})->offline);
  EXPECT_EQ(options_of({{"HF_HUB_DOWNLOAD_TIMEOUT", "2.5"}})->timeout_s, 2.5);
  for (const char* text : {"x", "0", "-1", "nan", "1e9", "5s"}) {
    const auto options = options_of({{"HF_HUB_DOWNLOAD_TIMEOUT", text}});
    ASSERT_FALSE(options.ok()) << text;
    EXPECT_THAT(options.error().message, HasSubstr("HF_HUB_DOWNLOAD_TIMEOUT must"));
  }
}

TEST(HubOptions, Token) {
  const TempDir home;
  EXPECT_EQ(options_of({{"HF_HOME", home.path()}})->token, "");
  write_file(home.file("token"), "hf_fromfile\n");
  EXPECT_EQ(options_of({{"HF_HOME", home.path()}})->token, "hf_fromfile");
  EXPECT_EQ(options_of({{"HF_HOME", home.path()}, {"HF_TOKEN", " hf_given "}})->token, "hf_given");
  EXPECT_EQ(options_of({{"HF_HOME", home.path()}, {"HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"}})->token,
            "");
  write_file(home.file("other"), "hf_other");
  EXPECT_EQ(options_of({{"HF_HOME", home.path()}, {"HF_TOKEN_PATH", home.file("other")}})->token,
            "hf_other");
  const auto injected = options_of({{"HF_TOKEN", "a\r\nX-Evil: 1"}});
  ASSERT_FALSE(injected.ok());
  EXPECT_THAT(injected.error().message, HasSubstr("HF_TOKEN"));
}

TEST(HubFiles, OnlyWhatWeftReads) {
  for (const char* file :
       {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer_config.json",
        "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
        "video_preprocessor_config.json", "processor_config.json",
        "additional_chat_templates/tool_use.jinja"}) {
    EXPECT_TRUE(is_needed_model_file(file)) << file;
  }
  for (const char* file :
       {"pytorch_model.bin", "model.pt", "modeling_x.py", "model.gguf", "README.md",
        ".gitattributes", "original/model.safetensors", "../config.json",
        "consolidated.safetensors", "", "training_args.bin", "/config.json", "a\\b.safetensors",
        ".safetensors", "additional_chat_templates/../config.json",
        "additional_chat_templates/rag.jinja"}) {
    EXPECT_FALSE(is_needed_model_file(file)) << file;
  }
}

TEST(UrlOrigin, SchemeHostAndPort) {
  EXPECT_EQ(url_origin("https://A.example/x"), url_origin("https://a.example:443/y?z"));
  EXPECT_NE(url_origin("https://a.example"), url_origin("http://a.example"));
  EXPECT_NE(url_origin("http://a.example"), url_origin("http://a.example:8080"));
  EXPECT_NE(url_origin("http://a.example"), url_origin("http://a.example.evil"));
  EXPECT_NE(url_origin("http://a.example"), url_origin("http://a.example@evil"));
  for (const char* url : {"", "x", "file:///etc/passwd", "ftp://a", "gopher://a"}) {
    EXPECT_EQ(url_origin(url), "") << url;
  }
}

}  // namespace
}  // namespace weft
