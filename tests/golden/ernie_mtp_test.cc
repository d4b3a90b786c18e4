#include "tests/golden/ernie_mtp.h"

#include <cstring>
#include <map>

#include "tests/golden/golden_case.h"

// ERNIE-4.5's MTP module against its formula in double precision (the module as FastDeploy runs it,
// see src/models/ernie4_5.cc): transformers does not have it.

namespace weft::testing {
namespace {

using Row = std::vector<double>;
using Rows = std::vector<Row>;

constexpr double kEps = 1e-5, kTheta = 500000;
constexpr size_t kHeads = 4, kKvHeads = 2;

/// The module and what it shares with the model.
class Reference {
 public:
  explicit Reference(const std::string& dir)
      : file_(SafetensorsFile::open(dir + "/model.safetensors").value()) {}

  /// Row i of the module's input is token i with the hidden state behind the token before it. The
  /// rows that were given before are those in front.
  Row hidden(int32_t token, const Row& previous) {
    const Row& table = weight("model.embed_tokens.weight");
    const size_t h = previous.size();
    Row both = norm(Row(table.begin() + std::ptrdiff_t(token * h),
                        table.begin() + std::ptrdiff_t((token + 1) * h)),
                    "model.mtp_emb_norm.0.weight");
    for (const double x : norm(previous, "model.mtp_hidden_norm.0.weight")) both.push_back(x);
    Row x = times("model.mtp_linear_proj.0.weight", both);
    add(x, attention(norm(x, kLayer + "input_layernorm.weight")));
    add(x, mlp(norm(x, kLayer + "post_attention_layernorm.weight")));
    return norm(x, "model.norm.weight");
  }

  Row logits(const Row& hidden) { return times("model.embed_tokens.weight", hidden); }

 private:
  const std::string kLayer = "model.mtp_block.0.";

  const Row& weight(const std::string& name) {
    Row& out = weights_[name];
    if (!out.empty()) return out;
    const auto bytes = file_.load(name).value();
    for (size_t i = 0; i < bytes.size(); i += 2) {
      bf16 value;
      std::memcpy(&value, bytes.data() + i, 2);
      out.push_back(bf16_to_float(value));
    }
    return out;
  }

  Row times(const std::string& name, const Row& x) {
    const Row& w = weight(name);
    Row out(w.size() / x.size());
    for (size_t o = 0; o < out.size(); ++o) {
      for (size_t i = 0; i < x.size(); ++i) out[o] += w[o * x.size() + i] * x[i];
    }
    return out;
  }

  Row norm(const Row& x, const std::string& name) {
    double square = 0;
    for (const double v : x) square += v * v;
    Row out = x;
    const double scale = 1 / std::sqrt(square / static_cast<double>(x.size()) + kEps);
    for (size_t i = 0; i < x.size(); ++i) out[i] *= scale * weight(name)[i];
    return out;
  }

  static void add(Row& x, const Row& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  /// Pairs (2i, 2i + 1) of each head turn.
  static void rotate(Row& x, size_t dim, size_t position) {
    for (size_t i = 0; i < x.size(); i += 2) {
      const double angle = static_cast<double>(position) *
                           std::pow(kTheta, -static_cast<double>(i % dim) / double(dim));
      const double a = x[i], b = x[i + 1];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + 1] = b * std::cos(angle) + a * std::sin(angle);
    }
  }

  Row attention(const Row& x) {
    Row q = times(kLayer + "self_attn.q_proj.weight", x);
    const size_t dim = q.size() / kHeads;
    k_.push_back(times(kLayer + "self_attn.k_proj.weight", x));
    v_.push_back(times(kLayer + "self_attn.v_proj.weight", x));
    rotate(q, dim, k_.size() - 1);
    rotate(k_.back(), dim, k_.size() - 1);
    Row out(q.size());
    for (size_t head = 0; head < kHeads; ++head) {
      const size_t own = head * dim, shared = head / (kHeads / kKvHeads) * dim;
      Row p;
      double sum = 0;
      for (const Row& k : k_) {
        double score = 0;
        for (size_t d = 0; d < dim; ++d) score += q[own + d] * k[shared + d];
        p.push_back(std::exp(score / std::sqrt(static_cast<double>(dim))));
        sum += p.back();
      }
      for (size_t t = 0; t < p.size(); ++t) {
        for (size_t d = 0; d < dim; ++d) out[own + d] += p[t] / sum * v_[t][shared + d];
      }
    }
    return times(kLayer + "self_attn.o_proj.weight", out);
  }

  Row mlp(const Row& x) {
    Row gate = times(kLayer + "mlp.gate_proj.weight", x);
    const Row up = times(kLayer + "mlp.up_proj.weight", x);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
    return times(kLayer + "mlp.down_proj.weight", gate);
  }

  SafetensorsFile file_;
  std::map<std::string, Row> weights_;
  Rows k_, v_;
};

class ErnieMtp : public Golden {};

TEST_P(ErnieMtp, DraftModuleInF32) {
  const std::string dir = ernie_mtp_dir(std::get<0>(GetParam()));
  auto loaded =
      Driver::load(dir, {.ops = ops(), .format = WeightFormat::kF32, .kv_format = KvFormat::kF32});
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  Driver& driver = **loaded;
  ASSERT_TRUE(driver.model().spec().mtp.has_value());
  EXPECT_TRUE(std::holds_alternative<DenseMlpSpec>(driver.model().spec().mtp->layer.mlp));
  const auto all = golden<int32_t>(file(), "input_ids");
  const std::span<const int32_t> prompt = std::span(all).first(33);
  const int32_t next = 17;
  const std::vector<int32_t> drafts = {5, 211, 90, 4};
  const auto logits = driver.draft(prompt, next, drafts);

  Reference reference(dir);
  const auto expect = [&](const Row& hidden, std::span<const float> ours, size_t i) {
    const Row exact = reference.logits(hidden);
    EXPECT_LE(difference(ours, std::vector<float>(exact.begin(), exact.end())).relative_max(),
              kF32Tolerance)
        << "row " << i;
  };
  const size_t width = driver.hidden_rows().size() / prompt.size();
  const size_t vocab = logits.steps[0].size();
  Row hidden;
  for (size_t i = 0; i < prompt.size(); ++i) {
    const auto previous = std::span(driver.hidden_rows()).subspan(i * width, width);
    hidden = reference.hidden(i + 1 < prompt.size() ? prompt[i + 1] : next,
                              Row(previous.begin(), previous.end()));
    expect(hidden, std::span(logits.prompt).subspan(i * vocab, vocab), i);
  }
  for (size_t i = 0; i + 1 < drafts.size(); ++i) {
    hidden = reference.hidden(drafts[i], hidden);
    expect(hidden, logits.steps[i + 1], prompt.size() + i);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, ErnieMtp,
                         ::testing::ValuesIn(cases({"ernie4_5", "ernie4_5_moe"})), case_name);

}  // namespace
}  // namespace weft::testing
