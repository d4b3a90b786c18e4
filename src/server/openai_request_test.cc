#include "server/openai_request.h"

#include <gtest/gtest.h>

#include <cmath>

#include "server/api_error.h"
#include "server/json.h"

namespace weft {
namespace {

constexpr char kMessages[] = R"("messages":[{"role":"user","content":"hi"}])";

/// A chat with one message and further members.
std::string chat(const std::string& members) {
  return std::string("{") + kMessages + (members.empty() ? "" : ",") + members + "}";
}
std::string completion(const std::string& members) {
  return std::string("{\"prompt\":\"hi\"") + (members.empty() ? "" : ",") + members + "}";
}
std::string with_messages(const std::string& messages) {
  return "{\"messages\":" + messages + "}";
}

/// "" when it is accepted; else the field that the error names, and it must be a 400.
template <class T>
std::string refused(const Result<T>& result) {
  if (result.ok()) return "";
  const ApiError error = to_api_error(result.error());
  EXPECT_EQ(error.status, 400) << result.error().message;
  EXPECT_LT(result.error().message.size(), 400u);
  return error.param.empty() ? "body" : error.param;
}
std::string chat_refusal(const std::string& members) {
  return refused(parse_chat_request(chat(members)));
}
std::string completion_refusal(const std::string& members) {
  return refused(parse_completion_request(completion(members)));
}

GenerationRequest accepted(const std::string& members) {
  Result<GenerationRequest> result = parse_chat_request(chat(members));
  EXPECT_TRUE(result.ok()) << members << ": " << result.error().message;
  return result.ok() ? std::move(result).value() : GenerationRequest{};
}

TEST(ChatRequest, DefaultsAreThoseOfTheStruct) {
  const GenerationRequest r = accepted("");
  EXPECT_TRUE(r.is_chat);
  EXPECT_EQ(r.messages, R"([{"role":"user","content":"hi"}])");
  EXPECT_EQ(r.n, 1);
  EXPECT_FALSE(r.sampling.temperature || r.sampling.max_tokens || r.sampling.seed);
  EXPECT_TRUE(r.add_generation_prompt);
  EXPECT_FALSE(r.add_special_tokens);
  EXPECT_EQ(r.tool_choice, ToolChoice::kNone);
  EXPECT_EQ(r.format.kind, OutputFormat::Kind::kText);
}

TEST(ChatRequest, NullIsAbsent) {
  for (const char* field : {"model",
                            "temperature",
                            "top_p",
                            "top_k",
                            "min_p",
                            "n",
                            "stop",
                            "seed",
                            "max_tokens",
                            "max_completion_tokens",
                            "logprobs",
                            "top_logprobs",
                            "tools",
                            "tool_choice",
                            "response_format",
                            "structured_outputs",
                            "guided_json",
                            "stream",
                            "stream_options",
                            "logit_bias",
                            "functions",
                            "chat_template",
                            "chat_template_kwargs",
                            "reasoning_effort",
                            "cache_salt",
                            "priority",
                            "truncate_prompt_tokens",
                            "best_of",
                            "bad_words",
                            "documents",
                            "modalities",
                            "audio",
                            "parallel_tool_calls",
                            "user",
                            "metadata"}) {
    EXPECT_EQ(chat_refusal("\"" + std::string(field) + "\":null"), "") << field;
  }
}

TEST(ChatRequest, UnknownAndEffectlessFieldsAreAccepted) {
  accepted(R"("user":"u","metadata":{"a":"b"},"store":true,"service_tier":"auto","verbosity":"low",
              "safety_identifier":"s","prompt_cache_key":"k","spaces_between_special_tokens":true,
              "prediction":{"type":"content","content":"x"},"x_unknown":[1,{"a":null}])");
}

// Every field with values of the wrong type (A21): "1", true, [], {} where they are not the type.
TEST(ChatRequest, WrongTypesAreRefusedByName) {
  struct Case {
    const char* field;
    const char* kind;  // what it takes: i(nteger) n(umber) b(oolean) s(tring) a(rray) o(bject)
  };
  const Case cases[] = {{"model", "s"},
                        {"temperature", "n"},
                        {"top_p", "n"},
                        {"min_p", "n"},
                        {"top_k", "i"},
                        {"repetition_penalty", "n"},
                        {"presence_penalty", "n"},
                        {"frequency_penalty", "n"},
                        {"max_tokens", "i"},
                        {"max_completion_tokens", "i"},
                        {"min_tokens", "i"},
                        {"n", "i"},
                        {"best_of", "i"},
                        {"seed", "i"},
                        {"prompt_logprobs", "i"},
                        {"top_logprobs", "i"},
                        {"truncate_prompt_tokens", "i"},
                        {"priority", "i"},
                        {"stop", "sa"},
                        {"stop_token_ids", "a"},
                        {"allowed_token_ids", "a"},
                        {"logit_bias", "o"},
                        {"logprobs", "b"},
                        {"ignore_eos", "b"},
                        {"stream", "b"},
                        {"stream_options", "o"},
                        {"echo", "b"},
                        {"add_special_tokens", "b"},
                        {"include_stop_str_in_output", "b"},
                        {"skip_special_tokens", "b"},
                        {"return_token_ids", "b"},
                        {"return_tokens_as_token_ids", "b"},
                        {"include_reasoning", "b"},
                        {"parallel_tool_calls", "b"},
                        {"add_generation_prompt", "b"},
                        {"continue_final_message", "b"},
                        {"tools", "a"},
                        {"tool_choice", "so"},
                        {"response_format", "o"},
                        {"structured_outputs", "o"},
                        {"guided_regex", "s"},
                        {"guided_choice", "a"},
                        {"guided_grammar", "s"},
                        {"cache_salt", "s"},
                        {"chat_template_kwargs", "o"},
                        {"reasoning_effort", "s"},
                        {"documents", "a"},
                        {"modalities", "a"}};
  const std::pair<char, const char*> values[] = {{'s', "\"1\""}, {'b', "true"}, {'a', "[]"},
                                                 {'o', "{}"},    {'i', "3"},    {'n', "0.5"}};
  for (const Case& c : cases) {
    for (const auto& [kind, value] : values) {
      const std::string takes = c.kind;
      if (takes.find(kind) != std::string::npos) continue;
      if (takes == "n" && kind == 'i') continue;
      EXPECT_EQ(chat_refusal("\"" + std::string(c.field) + "\":" + value), c.field) << value;
    }
  }
}

TEST(ChatRequest, IntegersAreWholeAndOf64Bits) {
  EXPECT_EQ(accepted("\"max_tokens\":1000.0").sampling.max_tokens, 1000);
  EXPECT_EQ(accepted("\"max_tokens\":1e3").sampling.max_tokens, 1000);
  EXPECT_EQ(accepted("\"max_tokens\":-0.0").sampling.max_tokens, 0);
  EXPECT_EQ(accepted("\"seed\":9223372036854775807").sampling.seed, uint64_t{INT64_MAX});
  EXPECT_EQ(accepted("\"seed\":-9223372036854775808").sampling.seed, uint64_t{1} << 63);
  EXPECT_EQ(accepted("\"seed\":-1").sampling.seed, UINT64_MAX);
  for (const char* value : {"1.5", "9223372036854775808", "-9223372036854775809", "1e308", "1e16",
                            "18446744073709551615", "1e-5"}) {
    EXPECT_EQ(chat_refusal("\"seed\":" + std::string(value)), "seed") << value;
    EXPECT_EQ(chat_refusal("\"top_k\":" + std::string(value)), "top_k") << value;
  }
  EXPECT_FALSE(std::signbit(*accepted("\"temperature\":-0.0").sampling.temperature));
}

TEST(ChatRequest, CountsHaveBounds) {
  const auto repeat = [](const std::string& item, int count) {
    std::string out = "[";
    for (int i = 0; i < count; ++i) out += (i ? "," : "") + item;
    return out + "]";
  };
  EXPECT_EQ(chat_refusal("\"n\":1"), "");
  EXPECT_EQ(chat_refusal("\"n\":16"), "");
  for (const char* n : {"0", "17", "-1", "1000000000"}) {
    EXPECT_EQ(chat_refusal("\"n\":" + std::string(n)), "n");
  }
  EXPECT_EQ(chat_refusal("\"n\":3,\"best_of\":3"), "");
  EXPECT_EQ(chat_refusal("\"best_of\":1"), "");
  EXPECT_EQ(chat_refusal("\"n\":3,\"best_of\":4"), "best_of");
  EXPECT_EQ(chat_refusal("\"stop\":" + repeat("\"x\"", 16)), "");
  EXPECT_EQ(chat_refusal("\"stop\":" + repeat("\"x\"", 17)), "stop");
  EXPECT_EQ(chat_refusal("\"stop\":" + repeat("\"x\"", 100'000)), "stop");
  EXPECT_EQ(chat_refusal("\"stop\":[\"x\",1]"), "stop[1]");
  EXPECT_EQ(chat_refusal("\"stop_token_ids\":" + repeat("1", 4096)), "");
  EXPECT_EQ(chat_refusal("\"stop_token_ids\":" + repeat("1", 4097)), "stop_token_ids");
  EXPECT_EQ(chat_refusal("\"stop_token_ids\":[1,\"2\"]"), "stop_token_ids[1]");
  EXPECT_EQ(chat_refusal("\"stop_token_ids\":[]"), "");
  EXPECT_EQ(chat_refusal("\"allowed_token_ids\":[7]"), "");
  EXPECT_EQ(chat_refusal("\"allowed_token_ids\":null"), "");
  EXPECT_EQ(chat_refusal("\"allowed_token_ids\":[]"), "allowed_token_ids");
  const std::string one = R"({"role":"user","content":"x"})";
  EXPECT_EQ(refused(parse_chat_request(with_messages(repeat(one, 4096)))), "");
  EXPECT_EQ(refused(parse_chat_request(with_messages(repeat(one, 4097)))), "messages");
  EXPECT_EQ(refused(parse_chat_request(with_messages(repeat(one, 100'000)))), "messages");
  EXPECT_EQ(refused(parse_chat_request(with_messages("[]"))), "messages");
  std::string fields;
  for (int i = 0; i < 300; ++i) fields += (i ? ",\"f" : "\"f") + std::to_string(i) + "\":0";
  EXPECT_EQ(chat_refusal(fields), "body");
}

TEST(ChatRequest, LogitBiasKeysAreTokenIds) {
  const GenerationRequest r = accepted(R"("logit_bias":{"0":-100,"17":0.5})");
  ASSERT_EQ(r.sampling.logit_bias.size(), 2u);
  EXPECT_EQ(r.sampling.logit_bias[1], (std::pair<int64_t, double>{17, 0.5}));
  for (const char* key : {"", "-1", "01", "1.0", " 1", "a", "99999999999", "+1"}) {
    EXPECT_EQ(chat_refusal("\"logit_bias\":{\"" + std::string(key) + "\":1}"), "logit_bias") << key;
  }
  EXPECT_EQ(chat_refusal(R"("logit_bias":{"1":"2"})"), "logit_bias.1");
  EXPECT_EQ(chat_refusal(R"("logit_bias":{"1":null})"), "logit_bias.1");
  const auto many = [](int count) {
    std::string out = "\"logit_bias\":{";
    for (int i = 0; i < count; ++i) out += (i ? ",\"" : "\"") + std::to_string(i) + "\":1";
    return out + "}";
  };
  EXPECT_EQ(chat_refusal(many(1024)), "");
  EXPECT_EQ(chat_refusal(many(1025)), "logit_bias");
}

TEST(ChatRequest, CombinationsOfFields) {
  EXPECT_EQ(accepted("\"max_tokens\":5,\"max_completion_tokens\":7").sampling.max_tokens, 7);
  EXPECT_EQ(accepted("\"max_completion_tokens\":7,\"max_tokens\":5").sampling.max_tokens, 7);
  EXPECT_EQ(chat_refusal("\"stream_options\":{\"include_usage\":true}"), "stream_options");
  const GenerationRequest s = accepted(
      R"("stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true,
                  "include_obfuscation":false})");
  EXPECT_TRUE(s.stream && s.include_usage && s.continuous_usage_stats);
  EXPECT_EQ(chat_refusal(R"("stream":true,"stream_options":{"include_usage":1})"),
            "stream_options.include_usage");
  EXPECT_EQ(chat_refusal("\"prompt_logprobs\":1,\"stream\":true"), "prompt_logprobs");
  EXPECT_EQ(chat_refusal("\"top_logprobs\":1"), "top_logprobs");
  EXPECT_EQ(chat_refusal("\"top_logprobs\":1,\"logprobs\":false"), "top_logprobs");
  EXPECT_EQ(chat_refusal("\"top_logprobs\":21,\"logprobs\":true"), "top_logprobs");
  EXPECT_EQ(chat_refusal("\"top_logprobs\":-1,\"logprobs\":true"), "top_logprobs");
  EXPECT_EQ(accepted("\"top_logprobs\":20,\"logprobs\":true").sampling.logprobs, 20);
  EXPECT_EQ(accepted("\"logprobs\":true").sampling.logprobs, 0);
  EXPECT_FALSE(accepted("\"logprobs\":false").sampling.logprobs.has_value());
  const GenerationRequest c = accepted("\"continue_final_message\":true");
  EXPECT_TRUE(c.continue_final_message && !c.add_generation_prompt);
  EXPECT_EQ(chat_refusal("\"continue_final_message\":true,\"add_generation_prompt\":true"),
            "continue_final_message");
  EXPECT_EQ(chat_refusal("\"truncate_prompt_tokens\":0"), "truncate_prompt_tokens");
  EXPECT_EQ(chat_refusal("\"truncate_prompt_tokens\":-2"), "truncate_prompt_tokens");
  EXPECT_EQ(accepted("\"truncate_prompt_tokens\":-1").truncate_prompt_tokens, -1);
  EXPECT_EQ(chat_refusal("\"priority\":2147483648"), "priority");
  EXPECT_EQ(accepted("\"priority\":-2147483648").priority, INT32_MIN);
  EXPECT_EQ(chat_refusal("\"cache_salt\":\"\""), "cache_salt");
  EXPECT_EQ(chat_refusal("\"cache_salt\":\"" + std::string(257, 's') + "\""), "cache_salt");
  EXPECT_EQ(accepted("\"cache_salt\":\"" + std::string(256, 's') + "\"").cache_salt.size(), 256u);
}

TEST(ChatRequest, BadWords) {
  EXPECT_EQ(accepted(R"("bad_words":["x","a b"])").bad_words,
            (std::vector<std::string>{"x", "a b"}));
  EXPECT_EQ(chat_refusal(R"("bad_words":"x")"), "bad_words");
  EXPECT_EQ(chat_refusal(R"("bad_words":[1])"), "bad_words[0]");
}

TEST(ChatRequest, WhatIsNotThereIsRefusedByName) {
  for (const char* member :
       {R"("use_beam_search":true)", R"("chat_template":"{{x}}")", R"("functions":[])",
        R"("function_call":"auto")", R"("audio":{"voice":"a"})", R"("echo":true)",
        R"("web_search_options":{"x":1})", R"("logits_processors":["x"])",
        R"("thinking_token_budget":5)"}) {
    const std::string field = std::string(member).substr(1, std::string(member).find("\":") - 1);
    EXPECT_EQ(chat_refusal(member), field);
  }
  EXPECT_EQ(chat_refusal(R"("modalities":["text","audio"])"), "modalities");
  EXPECT_EQ(chat_refusal(R"("modalities":["text"],"bad_words":[],"use_beam_search":false)"), "");
}

TEST(ChatRequest, MessagesAreChecked) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("hi")", "messages"},
      {R"([1])", "messages[0]"},
      {R"([{"content":"x"}])", "messages[0].role"},
      {R"([{"role":null,"content":"x"}])", "messages[0].role"},
      {R"([{"role":"root","content":"x"}])", "messages[0].role"},
      {R"([{"role":"User","content":"x"}])", "messages[0].role"},
      {R"([{"role":"user"}])", "messages[0].content"},
      {R"([{"role":"user","content":null}])", "messages[0].content"},
      {R"([{"role":"user","content":1}])", "messages[0].content"},
      {R"([{"role":"user","content":{}}])", "messages[0].content"},
      {R"([{"role":"user","content":[]}])", "messages[0].content"},
      {R"([{"role":"user","content":["x"]}])", "messages[0].content[0]"},
      {R"([{"role":"user","content":[{"text":"x"}]}])", "messages[0].content[0].type"},
      {R"([{"role":"user","content":[{"type":"smell"}]}])", "messages[0].content[0].type"},
      {R"([{"role":"user","content":[{"type":"text"}]}])", "messages[0].content[0].text"},
      {R"([{"role":"user","content":[{"type":"text","text":1}]}])", "messages[0].content[0].text"},
      {R"([{"role":"user","content":"a"},{"role":"user","content":[{"type":"text","text":"x"},
          {"type":"video_url","video_url":{}}]}])",
       "messages[1].content[1].video_url.url"},
      {R"([{"role":"user","content":[{"type":"image_url"}]}])", "messages[0].content[0].image_url"},
      {R"([{"role":"user","content":[{"type":"image_url","image_url":{}}]}])",
       "messages[0].content[0].image_url.url"},
      {R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":7}}]}])",
       "messages[0].content[0].image_url.url"},
      {R"([{"role":"user","content":[{"type":"image_pil","image_pil":"x"}]}])",
       "messages[0].content[0]"},
      {R"([{"role":"tool","content":"x"}])", "messages[0].tool_call_id"},
      {R"([{"role":"tool","tool_call_id":7,"content":"x"}])", "messages[0].tool_call_id"},
      {R"([{"role":"function","content":"x"}])", "messages[0].name"},
      {R"([{"role":"user","content":"x","name":5}])", "messages[0].name"},
      {R"([{"role":"user","content":"x","tool_calls":[]}])", "messages[0].tool_calls"},
      {R"([{"role":"assistant","tool_calls":{}}])", "messages[0].tool_calls"},
      {R"([{"role":"assistant","tool_calls":[1]}])", "messages[0].tool_calls[0]"},
      {R"([{"role":"assistant","tool_calls":[{"id":"a"}]}])", "messages[0].tool_calls[0].function"},
      {R"([{"role":"assistant","tool_calls":[{"type":"x","function":{"name":"f"}}]}])",
       "messages[0].tool_calls[0].type"},
      {R"([{"role":"assistant","tool_calls":[{"function":{}}]}])",
       "messages[0].tool_calls[0].function.name"},
      {R"([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":3}}]}])",
       "messages[0].tool_calls[0].function.arguments"},
      {R"([{"role":"assistant","tool_calls":[{"id":"a","function":{"name":"f"}},
          {"id":"a","function":{"name":"f"}}]}])",
       "messages[0].tool_calls"},
      {R"([{"role":"assistant","content":"","reasoning":1}])", "messages[0].reasoning"},
  };
  for (const auto& [messages, field] : cases) {
    EXPECT_EQ(refused(parse_chat_request(with_messages(messages))), field) << messages;
  }
  EXPECT_EQ(refused(parse_chat_request("{}")), "messages");
  EXPECT_EQ(refused(parse_chat_request("{\"messages\":null}")), "messages");
}

TEST(ChatRequest, MessagesAreWrittenForTheTemplate) {
  const std::pair<const char*, const char*> cases[] = {
      {R"([{"role":"developer","content":"x"}])", R"([{"role":"system","content":"x"}])"},
      {R"([{"content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"role":"user",
           "name":null}])",
       R"([{"role":"user","content":"a\nb"}])"},
      {R"([{"role":"assistant","content":null,"refusal":null,"tool_calls":[{"id":"c1",
           "type":"function","function":{"name":"f","arguments":"{\"b\": 1.0, \"a\": [2]}"}}]},
           {"role":"tool","tool_call_id":"c1","content":"7"}])",
       R"([{"role":"assistant","content":"","tool_calls":[{"id":"c1","type":"function",)"
       R"("function":{"name":"f","arguments":{"b":1.0,"a":[2]}}}]},)"
       R"({"role":"tool","content":"7","tool_call_id":"c1"}])"},
      {R"([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{oops"}},
           {"function":{"name":"g","arguments":" "}},{"function":{"name":"h"}}]}])",
       R"([{"role":"assistant","content":"","tool_calls":[)"
       R"({"type":"function","function":{"name":"f","arguments":"{oops"}},)"
       R"({"type":"function","function":{"name":"g","arguments":{}}},)"
       R"({"type":"function","function":{"name":"h","arguments":{}}}]}])"},
      {R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,a"}},
           {"type":"text","text":"b"},{"type":"input_image","image_url":"data:,c"}]}])",
       R"([{"role":"user","content":[{"type":"image"},{"type":"text","text":"b"},{"type":"image"}]}])"},
      {R"([{"role":"assistant","content":"x","reasoning":"r"}])",
       R"([{"role":"assistant","content":"x","reasoning":"r","reasoning_content":"r"}])"},
  };
  for (const auto& [messages, written] : cases) {
    const Result<GenerationRequest> r = parse_chat_request(with_messages(messages));
    ASSERT_TRUE(r.ok()) << r.error().message;
    EXPECT_EQ(r->messages, written);
  }
}

TEST(ChatRequest, ImagesAreNamedByWhereTheyStand) {
  const auto r = parse_chat_request(with_messages(
      R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,a","detail":"low"}}]},
          {"role":"assistant","content":"x"},
          {"role":"user","content":[{"type":"text","text":"y"},{"type":"image","image":"data:,b"}]}])"));
  ASSERT_TRUE(r.ok()) << r.error().message;
  ASSERT_EQ(r->images.size(), 2u);
  EXPECT_EQ(r->images[0].field, "messages[0].content[0]");
  EXPECT_EQ(r->images[0].uri, "data:,a");
  EXPECT_EQ(r->images[1].field, "messages[2].content[1]");
  EXPECT_EQ(r->images[1].uri, "data:,b");
}

TEST(ChatRequest, Tools) {
  const auto tool = [](const std::string& name) {
    return R"({"type":"function","function":{"name":")" + name +
           R"(","description":"d","parameters":{"type":"object","x":1.0},"strict":true}})";
  };
  const std::string tools = "\"tools\":[" + tool("f") + "," + tool("g-h.i_2") + "]";
  EXPECT_EQ(accepted(tools).tools, "[" + tool("f") + "," + tool("g-h.i_2") + "]");
  EXPECT_EQ(accepted(tools).tool_choice, ToolChoice::kAuto);
  EXPECT_EQ(accepted(tools + ",\"tool_choice\":\"none\"").tool_choice, ToolChoice::kNone);
  EXPECT_EQ(accepted("\"tool_choice\":\"required\"," + tools).tool_choice, ToolChoice::kRequired);
  const GenerationRequest named =
      accepted(R"("tool_choice":{"type":"function","function":{"name":"f"}},)" + tools);
  EXPECT_EQ(named.tool_choice, ToolChoice::kNamed);
  EXPECT_EQ(named.tool_name, "f");
  EXPECT_EQ(accepted("\"tools\":[],\"tool_choice\":\"none\"").tools, "");

  EXPECT_EQ(chat_refusal("\"tool_choice\":\"auto\""), "tool_choice");
  EXPECT_EQ(chat_refusal("\"tool_choice\":\"required\",\"tools\":[]"), "tool_choice");
  EXPECT_EQ(chat_refusal("\"tool_choice\":\"any\"," + tools), "tool_choice");
  EXPECT_EQ(chat_refusal("\"tool_choice\":{}," + tools), "tool_choice.type");
  EXPECT_EQ(chat_refusal("\"tool_choice\":{\"type\":\"allowed_tools\"}," + tools),
            "tool_choice.type");
  EXPECT_EQ(chat_refusal(R"("tool_choice":{"type":"function"},)" + tools), "tool_choice.function");
  EXPECT_EQ(chat_refusal(R"("tool_choice":{"type":"function","function":{"name":"z"}},)" + tools),
            "tool_choice.function.name");
  EXPECT_EQ(
      chat_refusal(R"("response_format":{"type":"json_object"},"tool_choice":"required",)" + tools),
      "tool_choice");
  EXPECT_EQ(chat_refusal("\"tools\":[" + tool("f") + "," + tool("f") + "]"),
            "tools[1].function.name");
  for (const std::string& name : {std::string(), std::string("a b"), std::string("é"),
                                  std::string("a/b"), std::string(65, 'a')}) {
    EXPECT_EQ(chat_refusal("\"tools\":[" + tool(name) + "]"), "tools[0].function.name") << name;
  }
  EXPECT_EQ(chat_refusal(R"("tools":[{"type":"web_search"}])"), "tools[0].type");
  EXPECT_EQ(chat_refusal(R"("tools":[{"function":{"name":"f"}}])"), "tools[0].type");
  EXPECT_EQ(chat_refusal(R"("tools":[{"type":"function"}])"), "tools[0].function");
  EXPECT_EQ(
      chat_refusal(R"("tools":[{"type":"function","function":{"name":"f","parameters":[]}}])"),
      "tools[0].function.parameters");
  EXPECT_EQ(chat_refusal(R"("tools":[{"type":"function","function":{"name":"f","strict":1}}])"),
            "tools[0].function.strict");
  std::string many;
  for (int i = 0; i < 129; ++i) many += (i ? "," : "") + tool("f" + std::to_string(i));
  EXPECT_EQ(chat_refusal("\"tools\":[" + many + "]"), "tools");
}

TEST(ChatRequest, OutputFormats) {
  using Kind = OutputFormat::Kind;
  EXPECT_EQ(accepted(R"("response_format":{"type":"text"})").format.kind, Kind::kText);
  EXPECT_EQ(accepted(R"("response_format":{"type":"json_object"})").format.kind, Kind::kJsonObject);
  const OutputFormat schema = accepted(R"("response_format":{"type":"json_schema","json_schema":
      {"name":"s","strict":true,"schema":{"type":"object","b":1,"a":1.0}}})")
                                  .format;
  EXPECT_EQ(schema.kind, Kind::kJsonSchema);
  EXPECT_EQ(schema.text, R"({"type":"object","b":1,"a":1.0})");
  EXPECT_EQ(schema.field, "response_format.json_schema.schema");
  const auto structured = [](const std::string& inner) {
    return accepted("\"structured_outputs\":{" + inner + "}").format;
  };
  EXPECT_EQ(structured("\"json\":{\"a\":1}").text, "{\"a\":1}");
  EXPECT_EQ(structured(R"("json":"{\"a\": 1}")").text, "{\"a\":1}");
  EXPECT_EQ(structured("\"regex\":\"a+\",\"json\":null").kind, Kind::kRegex);
  EXPECT_EQ(structured("\"choice\":[\"a\",\"b\"]").choices.size(), 2u);
  EXPECT_EQ(structured("\"grammar\":\"root ::= x\"").kind, Kind::kGrammar);
  EXPECT_EQ(structured("\"json_object\":true").kind, Kind::kJsonObject);
  EXPECT_EQ(accepted(R"("guided_choice":["a"])").format.field, "guided_choice");

  const std::pair<const char*, const char*> bad[] = {
      {R"("response_format":{})", "response_format.type"},
      {R"("response_format":{"type":"xml"})", "response_format.type"},
      {R"("response_format":{"type":"json_schema"})", "response_format.json_schema"},
      {R"("response_format":{"type":"json_schema","json_schema":{}})",
       "response_format.json_schema.name"},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"a b"}})",
       "response_format.json_schema.name"},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"a","schema":[]}})",
       "response_format.json_schema.schema"},
      {R"("structured_outputs":{})", "structured_outputs"},
      {R"("structured_outputs":{"regex":"a","choice":["b"]})", "structured_outputs"},
      {R"("structured_outputs":{"regex":""})", "structured_outputs.regex"},
      {R"("structured_outputs":{"choice":[]})", "structured_outputs.choice"},
      {R"("structured_outputs":{"choice":[""]})", "structured_outputs.choice"},
      {R"("structured_outputs":{"choice":[1]})", "structured_outputs.choice[0]"},
      {R"("structured_outputs":{"json":"{"})", "structured_outputs.json"},
      {R"("structured_outputs":{"json":1})", "structured_outputs.json"},
      {R"("structured_outputs":{"json_object":false})", "structured_outputs.json_object"},
      {R"("structured_outputs":{"structural_tag":"x"})", "structured_outputs.structural_tag"},
      {R"("structured_outputs":{"regex":"a","whitespace_pattern":"x"})",
       "structured_outputs.whitespace_pattern"},
      {R"("guided_regex":"a","guided_choice":["b"])", "guided_choice"},
      {R"("structured_outputs":{"regex":"a"},"response_format":{"type":"json_object"})",
       "response_format"},
  };
  for (const auto& [members, field] : bad) EXPECT_EQ(chat_refusal(members), field) << members;
  EXPECT_EQ(chat_refusal("\"guided_regex\":\"" + std::string((256 << 10) + 1, 'a') + "\""),
            "guided_regex");
}

TEST(ChatRequest, TemplateArguments) {
  using Kwargs = std::vector<std::pair<std::string, std::string>>;
  EXPECT_EQ(
      accepted(R"("chat_template_kwargs":{"enable_thinking":false,"x":{"y":[1]}})").template_kwargs,
      (Kwargs{{"enable_thinking", "false"}, {"x", "{\"y\":[1]}"}}));
  EXPECT_EQ(accepted(R"("reasoning_effort":"none")").template_kwargs,
            (Kwargs{{"reasoning_effort", "\"none\""}, {"enable_thinking", "false"}}));
  EXPECT_EQ(accepted(R"("reasoning_effort":"none","chat_template_kwargs":{"enable_thinking":true})")
                .template_kwargs,
            (Kwargs{{"enable_thinking", "true"}, {"reasoning_effort", "\"none\""}}));
  EXPECT_EQ(chat_refusal(R"("reasoning_effort":"most")"), "reasoning_effort");
  for (const char* name : {"messages", "tools", "add_generation_prompt", "chat_template",
                           "continue_final_message", "documents", "bos_token", "tokenize"}) {
    EXPECT_EQ(chat_refusal("\"chat_template_kwargs\":{\"" + std::string(name) + "\":1}"),
              "chat_template_kwargs." + std::string(name));
  }
  for (const char* name : {"", "a b", "1a", "é", "a.b"}) {
    EXPECT_EQ(chat_refusal("\"chat_template_kwargs\":{\"" + std::string(name) + "\":1}"),
              "chat_template_kwargs");
  }
  EXPECT_EQ(chat_refusal("\"chat_template_kwargs\":{\"a\":\"" + std::string(65 << 10, 'x') + "\"}"),
            "chat_template_kwargs");
}

TEST(CompletionRequest, Prompts) {
  using Ids = std::vector<int64_t>;
  const auto prompts = [](const std::string& value) {
    const Result<GenerationRequest> r = parse_completion_request("{\"prompt\":" + value + "}");
    EXPECT_TRUE(r.ok()) << value;
    return r.ok() ? r->prompts : decltype(GenerationRequest::prompts){};
  };
  EXPECT_EQ(std::get<std::string>(prompts("\"\"")[0]), "");
  EXPECT_EQ(prompts("[\"a\",\"b\"]").size(), 2u);
  EXPECT_EQ(std::get<Ids>(prompts("[1,2,3.0]")[0]), (Ids{1, 2, 3}));
  EXPECT_EQ(std::get<Ids>(prompts("[[1],[-1,2147483648]]")[1]), (Ids{-1, 2147483648}));
  const std::pair<const char*, const char*> bad[] = {{"1", "prompt"},
                                                     {"true", "prompt"},
                                                     {"{}", "prompt"},
                                                     {"[]", "prompt"},
                                                     {"null", "prompt"},
                                                     {"[\"a\",1]", "prompt[1]"},
                                                     {"[1,\"a\"]", "prompt[1]"},
                                                     {"[[1],\"a\"]", "prompt[1]"},
                                                     {"[1.5]", "prompt[0]"},
                                                     {"[null]", "prompt[0]"},
                                                     {"[[true]]", "prompt[0][0]"}};
  for (const auto& [value, field] : bad) {
    EXPECT_EQ(refused(parse_completion_request("{\"prompt\":" + std::string(value) + "}")), field)
        << value;
  }
  EXPECT_EQ(refused(parse_completion_request("{}")), "prompt");
  std::string many = "[\"a\"";
  for (int i = 1; i < 1024; ++i) many += ",\"a\"";
  EXPECT_EQ(refused(parse_completion_request("{\"prompt\":" + many + "]}")), "");
  EXPECT_EQ(refused(parse_completion_request("{\"n\":2,\"prompt\":" + many + "]}")), "n");
  EXPECT_EQ(refused(parse_completion_request("{\"prompt\":" + many + ",\"a\"]}")), "prompt");
}

TEST(CompletionRequest, OwnFields) {
  const Result<GenerationRequest> r =
      parse_completion_request(completion("\"echo\":true,\"logprobs\":5,\"suffix\":\"\""));
  ASSERT_TRUE(r.ok());
  EXPECT_TRUE(r->echo && r->add_special_tokens && !r->is_chat);
  EXPECT_EQ(r->sampling.logprobs, 5);
  EXPECT_EQ(completion_refusal("\"suffix\":\"x\""), "suffix");
  EXPECT_EQ(completion_refusal("\"logprobs\":true"), "logprobs");
  EXPECT_EQ(completion_refusal("\"prompt_embeds\":\"x\""), "prompt_embeds");
}

TEST(TokenizeRequest, TextOrConversation) {
  const Result<TokenizeRequest> text = parse_tokenize_request(
      R"({"prompt":"x","add_special_tokens":false,"return_token_strs":true})");
  ASSERT_TRUE(text.ok());
  EXPECT_FALSE(text->request.is_chat || text->request.add_special_tokens);
  EXPECT_TRUE(text->return_token_strs);
  EXPECT_TRUE(parse_tokenize_request(R"({"prompt":"x"})")->request.add_special_tokens);
  const Result<TokenizeRequest> chats = parse_tokenize_request(
      chat(R"("add_generation_prompt":false,"chat_template_kwargs":{"a":1})"));
  ASSERT_TRUE(chats.ok());
  EXPECT_TRUE(chats->request.is_chat);
  EXPECT_FALSE(chats->request.add_generation_prompt || chats->request.add_special_tokens);
  EXPECT_EQ(chats->request.template_kwargs.size(), 1u);
  EXPECT_EQ(refused(parse_tokenize_request("{}")), "prompt");
  EXPECT_EQ(refused(parse_tokenize_request(chat("\"prompt\":\"x\""))), "prompt");
  EXPECT_EQ(refused(parse_tokenize_request("{\"prompt\":[1]}")), "prompt");
}

TEST(DetokenizeRequest, Ids) {
  EXPECT_EQ(parse_detokenize_request("{\"tokens\":[1,2]}")->tokens, (std::vector<int64_t>{1, 2}));
  EXPECT_TRUE(parse_detokenize_request("{\"tokens\":[]}")->tokens.empty());
  EXPECT_EQ(refused(parse_detokenize_request("{}")), "tokens");
  EXPECT_EQ(refused(parse_detokenize_request("{\"tokens\":\"1\"}")), "tokens");
  EXPECT_EQ(refused(parse_detokenize_request("{\"tokens\":[true]}")), "tokens[0]");
}

TEST(Requests, BodiesThatAreNoObjectAreRefused) {
  for (const char* body : {"", "[]", "1", "null", "\"x\"", "{", "{}{}", "{\"a\":NaN}"}) {
    EXPECT_EQ(refused(parse_chat_request(body)), body == std::string("{}") ? "messages" : "body");
    EXPECT_EQ(refused(parse_completion_request(body)), "body");
    EXPECT_EQ(refused(parse_tokenize_request(body)), "body");
    EXPECT_EQ(refused(parse_detokenize_request(body)), "body");
  }
}

}  // namespace
}  // namespace weft
