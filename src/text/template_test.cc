#include "text/template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/temp_dir.h"
#include "tests/support/oracle.h"

namespace weft {
namespace {

using OrderedJson = nlohmann::ordered_json;

ChatInput input_of(const OrderedJson& args) {
  ChatInput input;
  for (const auto& [key, value] : args.items()) {
    if (key == "messages") {
      input.messages_json = value.dump();
    } else if (key == "tools") {
      input.tools_json = value.dump();
    } else if (key == "add_generation_prompt") {
      input.add_generation_prompt = value;
    } else {
      input.extra.emplace_back(key, value.dump());
    }
  }
  return input;
}

/// The rendering, or "error: ...".
std::string render(const std::string& source,
                   const OrderedJson& args = {{"messages", OrderedJson::array()}},
                   const RenderLimits& limits = {}) {
  auto t = ChatTemplate::parse(source, {{"bos_token", "<|endoftext|>"}}, "t");
  if (!t.ok()) return "error: " + t.error().message;
  auto r = t->render(input_of(args), limits);
  return r.ok() ? r->text : "error: " + r.error().message;
}

TEST(Template, OracleLines) {
  const std::string dir = oracle_dir() + "/text/templates";
  std::ifstream file(dir + "/golden.jsonl");
  int lines = 0;
  for (std::string line; std::getline(file, line); ++lines) {
    const OrderedJson j = OrderedJson::parse(line);
    const std::string source = file_text(dir + "/" + j["template"].get<std::string>() + ".jinja");
    const std::string out = render(source, j["input"]);
    if (j.contains("text")) {
      EXPECT_EQ(out, j["text"].get<std::string>());
      continue;
    }
    // "TemplateError: unknown role alien" here is "t:62:12: unknown role alien".
    const std::string message = j["error"].get<std::string>();
    EXPECT_THAT(out, ::testing::MatchesRegex("error: t:[0-9]+:[0-9]+: .*"));
    EXPECT_THAT(out, ::testing::EndsWith(message.substr(message.find(": "))));
  }
  EXPECT_EQ(lines, 24);
}

TEST(Template, Whitespace) {
  EXPECT_EQ(render("a\n  {% if true %}\n  b\n  {% endif %}\n  c\n"), "a\n  b\n  c");
  EXPECT_EQ(render("a {{- 1 -}} b"), "a1b");
  EXPECT_EQ(render("  {{ 1 }}\n {# x #}\nz"), "  1\nz");
  EXPECT_EQ(render("x {%+ if true +%}\ny{% endif %}"), "x \ny");
  EXPECT_EQ(render("  {%- raw -%} {{ x }} {%- endraw %}!"), "{{ x }}!");
  EXPECT_EQ(render("a\r\nb\r\n\r\n"), "a\nb\n");
}

TEST(Template, Scopes) {
  EXPECT_EQ(render("{% set x = 1 %}{% for i in [1,2] %}{{ x }}{% set x = x + i %}{{ x }},{% endfor "
                   "%}{{ x }}"),
            "12,13,1");
  EXPECT_EQ(render("{% set ns = namespace(n=0) %}{% for i in [1,2] %}{% set ns.n = ns.n + i %}{% "
                   "endfor %}{{ ns.n }}"),
            "3");
  EXPECT_EQ(render("{% macro m(a, b=a) %}{{ a }}{{ b }}{{ y }}{% endmacro %}{% set y = 7 %}{{ m(1) "
                   "}}{{ m(1, b=2) }}"),
            "117127");
  EXPECT_EQ(
      render(
          "{% macro m() %}[{{ caller(3) }}]{% endmacro %}{% call(v) m() %}{{ v }}!{% endcall %}"),
      "[3!]");
  EXPECT_EQ(render("{% with a = 1 %}{{ a }}{% endwith %}{{ a is defined }}"), "1False");
  EXPECT_EQ(render("{% for i in [1,[2,[3]]] recursive %}{{ loop(i) if i is iterable else i }}{{ "
                   "loop.depth }}{% endfor %}"),
            "11223321");
  EXPECT_EQ(render("{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{% else %}no{% endfor %}"),
            "x1");
  EXPECT_EQ(render("{% set a, b = 1, 2 %}{{ a + b }}{% set c %}{{ a }}{% endset %}{{ c }}"), "31");
  EXPECT_EQ(render("{% generation %}x{% endgeneration %}{% filter upper %}y{% endfilter %}"), "xY");
}

TEST(Template, Undefined) {
  EXPECT_EQ(
      render("{{ x }}{{ x is defined }}{{ x|length }}{% for i in x %}{% endfor %}{{ 'a' ~ x }}"),
      "False0a");
  EXPECT_EQ(render("{{ x.y }}"), "error: t:1:6: 'x' is undefined");
  EXPECT_EQ(render("{{ messages[3] is defined }}{{ {}.a }}"), "False");
  EXPECT_EQ(render("{{ {}.a.b }}"), "error: t:1:9: 'dict object' has no attribute 'a'");
  EXPECT_EQ(render("\n {{ 1 + x }}"), "error: t:2:7: 'x' is undefined");
  EXPECT_EQ(render("{{ [].append(1) }}"),
            "error: t:1:7: access to attribute 'append' of 'list' object is unsafe.");
  EXPECT_EQ(render("{{ ''.__class__ }}|{{ ''['__class__'] }}"), "|");
  EXPECT_THAT(render("{{ ''.__class__.__mro__.x }}"), ::testing::StartsWith("error: t:1:"));
}

TEST(Template, SyntaxErrorsNameThePlace) {
  EXPECT_EQ(render("a\n{% if x %}"), "error: t:2:11: unexpected end of template, expected 'endif'");
  EXPECT_EQ(render("{{ a b }}"), "error: t:1:6: expected '}}', got 'b'");
  EXPECT_EQ(render("{% do x %}"), "error: t:1:4: unknown tag 'do'");
  EXPECT_EQ(render("{{ (1 }}"), "error: t:1:7: unexpected '}', expected ')'");
  EXPECT_EQ(render("{{ 'a }}"), "error: t:1:4: unterminated string");
  EXPECT_EQ(render("{{ 1|nope }}"), "error: t:1:6: filter 'nope' is not known");
  EXPECT_EQ(render("{% include 'x' %}"),
            "error: t:1:4: tag 'include' is not supported in chat templates");
  EXPECT_EQ(render("{% endfor %}"), "error: t:1:4: unknown tag 'endfor'");
  EXPECT_EQ(render("{% break %}"), "error: t:1:4: 'break' outside of a loop");
}

TEST(Template, Bounds) {
  const auto start = std::chrono::steady_clock::now();
  const auto refused = [](const std::string& source) {
    const std::string out = render(source);
    EXPECT_THAT(out, ::testing::MatchesRegex("error: t:[0-9]+:[0-9]+: .*")) << source.substr(0, 80);
  };
  refused("{{ 'x' * 1000000000 }}");
  refused("{{ [1] * 1000000000 }}");
  refused("{{ range(1000000000) | list }}");
  refused("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
  refused("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}");
  refused("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}");
  refused(
      "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor "
      "%}");
  refused(
      "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% "
      "endfor %}");
  refused("{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns }}");
  refused("{{ 9223372036854775807 + 1 }}");
  refused("{{ '%99999999d' % 1 }}{{ 'a'.center(99999999999) }}");
  refused("{{ 'x'.replace('', 'y' * 60000000) }}");
  refused("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}");
  refused("{{ " + std::string(5000, '(') + " }}");
  refused("{{ " + std::string(5000, '-') + "1 }}");
  std::string sum = "{{ 1", filters = "{{ 'a'";
  for (int i = 0; i < 5000; ++i) sum += " + 1", filters += "|upper";
  refused(sum + " }}");
  refused(filters + " }}");
  EXPECT_THAT(
      render("{{ messages }}",
             {{"messages", OrderedJson::parse(std::string(200, '[') + std::string(200, ']'))}}),
      ::testing::HasSubstr("messages: not valid JSON"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

/// The user's bytes, each shown as '#', the template's as they are.
std::string provenance(const std::string& source, const OrderedJson& args) {
  auto t = std::move(ChatTemplate::parse(source)).value();
  const Rendered r = t.render(input_of(args)).value();
  std::string shown = r.text;
  size_t covered = 0;
  for (const RenderedSpan& s : r.spans) {
    EXPECT_EQ(s.begin, covered);
    covered = s.end;
    if (s.user)
      std::fill(shown.begin() + static_cast<long>(s.begin),
                shown.begin() + static_cast<long>(s.end), '#');
  }
  EXPECT_EQ(covered, r.text.size());
  return shown;
}

TEST(Template, Provenance) {
  const OrderedJson args = {
      {"messages", {{{"role", "user"}, {"content", " ab<x>cd "}}}}, {"name", "bob"}, {"n", 3}};
  const auto shown = [&](const std::string& s) { return provenance(s, args); };
  EXPECT_EQ(shown("<s>{{ messages[0].role + ':' ~ messages[0].content|trim }}</s>"),
            "<s>####:#######</s>");
  EXPECT_EQ(
      shown("{% set c = '<' ~ name ~ '>' %}{{ c[1:3] }}|{{ c[::-1] }}|{{ c.replace('o', '-') }}"),
      "##|>###<|<#-#>");
  EXPECT_EQ(shown("{% set c = messages[0].content %}{{ c.split('<x>')[1].strip() }}!{{ c.split() | "
                  "join('+') }}"),
            "##!#######");
  EXPECT_EQ(shown("{{ ('%s/%s' % (name, 'a')) ~ '{}={}'.format('k', name) }}"), "###/ak=###");
  EXPECT_EQ(shown("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(name) }}{% set b %}({{ name }}){% "
                  "endset %}{{ b }}"),
            "[###](###)");
  EXPECT_EQ(shown("{{ messages | tojson }}"), std::string(42, '#'));
  EXPECT_EQ(shown("{{ {'k': name} | tojson }}{{ {'k': name} }}"), "{\"k\": #####}{'k': #####}");
  EXPECT_EQ(shown("{{ n }}{{ n + 1 }}{{ name|upper }}{{ name|length }}{{ [name, 'x']|join(',') }}"),
            "#####3###,x");
  EXPECT_EQ(shown("{{ messages|map(attribute='role')|join('|') }}{% for k in messages[0] %}{{ k "
                  "}}{% endfor %}"),
            "####" + std::string(11, '#'));
}

TEST(Template, SafeTextsAreJoinedAsTheyAre) {
  // What Qwen3-Coder's template does with the keys of a tool that it does not know.
  EXPECT_EQ(render("{{ '<k>' ~ (['a', 1] | tojson | safe) ~ '</k>' }}"), "<k>[\"a\", 1]</k>");
  EXPECT_EQ(render("{{ ['<', '&' | safe] | join('>' | safe) }}"), "<>&");
  EXPECT_EQ(render("{{ '<'.join(['>' | safe, '>']) }}"), "><>");
  EXPECT_EQ(render("{{ ('<' ~ ('a' | safe)) + '<' }}"), "<a<");
  EXPECT_EQ(render("{{ '<' + ('<' | safe) }}"), "&lt;<");
  EXPECT_EQ(render("{{ ('<' | safe).join(['>', '>']) }}"), "&gt;<&gt;");
}

TEST(Template, HuggingFaceFunctions) {
  ChatInput input;
  std::tm now{};
  now.tm_year = 125, now.tm_mon = 6, now.tm_mday = 4;
  input.now = now;
  auto t = std::move(ChatTemplate::parse(
                         "{{ strftime_now('%d %b %Y') }}{{ tools is none }}{{ {'b': [1, 2.0, "
                         "none], 'a': '\\u00e9<'}|tojson(indent=2, sort_keys=true) }}"))
               .value();
  EXPECT_EQ(
      t.render(input)->text,
      "04 Jul 2025True{\n  \"a\": \"\u00e9<\",\n  \"b\": [\n    1,\n    2.0,\n    null\n  ]\n}");
  input.extra = {{"raise_exception", "1"}};
  EXPECT_THAT(t.render(input).error().message,
              ::testing::HasSubstr("'raise_exception' is a function"));
}

/// A model directory with these files.
class TemplateFiles : public testing::Test {
 protected:
  void put(const std::string& name, const std::string& text) {
    const std::filesystem::path path = directory_.file(name);
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  std::string render(bool tools = false) const {
    const auto chat = ChatTemplate::load(directory_.path());
    if (!chat.ok()) return "error: " + chat.error().message;
    ChatInput input;
    if (tools) input.tools_json = R"([{"type": "function"}])";
    const auto out = chat->render(input);
    return out.ok() ? out->text : "error: " + out.error().message;
  }

  TempDir directory_;
};

TEST_F(TemplateFiles, AFileGoesBeforeTheFieldsOfJson) {
  EXPECT_THAT(render(), ::testing::HasSubstr("no chat template"));
  put("chat_template.json", R"({"chat_template": "processor"})");
  EXPECT_EQ(render(), "processor");
  put("tokenizer_config.json", R"({"chat_template": null})");
  EXPECT_EQ(render(), "processor");
  put("tokenizer_config.json", R"({"chat_template": "config"})");
  EXPECT_EQ(render(), "config");
  put("chat_template.jinja", "file");
  EXPECT_EQ(render(), "file");
}

TEST_F(TemplateFiles, ToolsHaveATemplateOfTheirOwn) {
  put("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "{% broken"},
      {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]})");
  EXPECT_EQ(render(), "plain");
  EXPECT_EQ(render(/*tools=*/true), "tools");
  put("chat_template.jinja", "file");
  EXPECT_EQ(render(/*tools=*/true), "file");
  put("additional_chat_templates/tool_use.jinja", "tools of a file");
  EXPECT_EQ(render(), "file");
  EXPECT_EQ(render(/*tools=*/true), "tools of a file");
  put("additional_chat_templates/tool_use.jinja", "{{ 1 +");
  EXPECT_THAT(render(), ::testing::HasSubstr("tool_use.jinja:1:"));
}

TEST_F(TemplateFiles, SpecialTokensStandInEitherFile) {
  put("chat_template.jinja", "{{ bos_token }} {{ cls_token }} {{ sep_token is defined }}");
  EXPECT_EQ(render(), "  False");
  put("special_tokens_map.json", R"({"bos_token": "<s>", "cls_token": {"content": "<c>"}})");
  EXPECT_EQ(render(), "<s> <c> False");
  put("tokenizer_config.json", R"({"bos_token": null, "sep_token": {"content": "<p>"}})");
  EXPECT_EQ(render(), "<s> <c> True");
  put("tokenizer_config.json", R"({"bos_token": null, "added_tokens_decoder": {}})");
  EXPECT_EQ(render(), " <c> False");
  put("special_tokens_map.json", "");
  EXPECT_EQ(render(), "  False");
}

}  // namespace
}  // namespace weft
