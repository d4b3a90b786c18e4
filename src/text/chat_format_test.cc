#include "text/chat_format.h"

#include <gtest/gtest.h>

#include "text/template.h"

namespace weft {
namespace {

using Reasoning = ChatFormat::Reasoning;
using Tools = ChatFormat::Tools;

TEST(ChatFormat, IsFoundFromTheTemplate) {
  const ChatFormat none;
  EXPECT_EQ(detect_chat_format("{{ messages[0].content }}"), none);
  EXPECT_EQ(detect_chat_format("...<tool_call>\\n{\"name\": ..."),
            (ChatFormat{Reasoning::kNone, Tools::kHermesJson}));
  EXPECT_EQ(detect_chat_format("<think>\\n <tool_call>\\n{\"name\""),
            (ChatFormat{Reasoning::kThinkTags, Tools::kHermesJson}));
  EXPECT_EQ(detect_chat_format("</think> <tool_call>\\n<function=example>"),
            (ChatFormat{Reasoning::kThinkTags, Tools::kQwenXml}));
  EXPECT_EQ(detect_chat_format("<|start_header_id|> {\"name\": x, \"parameters\": y}"),
            (ChatFormat{Reasoning::kNone, Tools::kLlamaJson}));
  EXPECT_EQ(detect_chat_format("<|start_header_id|>user"), none);
}

TEST(ChatFormat, OfTheDemoModel) {
  const auto chat = ChatTemplate::load(WEFT_SOURCE_DIR "/models/demo");
  ASSERT_TRUE(chat.ok()) << chat.error().message;
  EXPECT_EQ(detect_chat_format(chat->source()),
            (ChatFormat{Reasoning::kThinkTags, Tools::kHermesJson}));
}

TEST(ChatFormat, NamesChooseAndUnknownOnesAreRefused) {
  const ChatFormat detected{Reasoning::kThinkTags, Tools::kHermesJson};
  EXPECT_EQ(*choose_chat_format("auto", "", detected), detected);
  EXPECT_EQ(*choose_chat_format("qwen3_coder", "none", detected),
            (ChatFormat{Reasoning::kNone, Tools::kQwenXml}));
  EXPECT_EQ(*choose_chat_format("none", "deepseek_r1", {}),
            (ChatFormat{Reasoning::kThinkTags, Tools::kNone}));
  EXPECT_EQ(*choose_chat_format("llama3_json", "auto", detected),
            (ChatFormat{Reasoning::kThinkTags, Tools::kLlamaJson}));
  const auto refused = choose_chat_format("Hermes", "auto", detected);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("tool-call-parser: 'Hermes'"), std::string::npos);
  EXPECT_NE(refused.error().message.find("auto, none, hermes"), std::string::npos);
  const auto unknown = choose_chat_format("auto", "o1", detected);
  ASSERT_FALSE(unknown.ok());
  EXPECT_NE(unknown.error().message.find("deepseek_r1"), std::string::npos);
}

}  // namespace
}  // namespace weft
