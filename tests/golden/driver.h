#pragma once

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "device/gpu.h"
#include "models/model.h"
#include "models/prefill.h"
#include "nn/vision_plan.h"

namespace weft::testing {

constexpr double kF32Tolerance = 2e-4;   ///< of the largest logit
constexpr double kBf16Tolerance = 2e-2;  ///< relative L2

/// Runs one sequence through a model, its paged cache and its state slots, without a scheduler.
/// Blocks are handed out in a scattered order and the state moves between slots, so that an op that
/// ignores them fails.
class Driver {
 public:
  struct Options {
    const OpTable* ops = nullptr;
    WeightFormat format = WeightFormat::kF32;
    KvFormat kv_format = KvFormat::kF32;
    int64_t max_len = 2048;
    int num_threads = 1;  ///< tests run side by side
    bool images = false;
    PrefillOptions prefill;
  };

  /// Loads the model directory `dir`.
  static Result<std::unique_ptr<Driver>> load(const std::string& dir, const Options& options);

  const Model& model() const { return *model_; }
  int64_t vocab() const { return model_->spec().vocab; }

  /// Forgets the sequence.
  void reset();
  /// Computes prompt tokens in steps of at most `chunk` (a multiple of 64; 0: in one piece) and
  /// returns the logits of the last `last` of them (all: -1), [last, V]. Where a router decides by
  /// the whole prompt, chunks are pieces of one layer after the other.
  std::vector<float> prefill(std::span<const int32_t> tokens, int64_t chunk, int64_t last = -1);
  /// Computes one generated token; its logits [V].
  std::vector<float> decode(int32_t token);
  /// Greedy continuation after prefill() or decode(), whose last logits are `logits`.
  std::vector<int32_t> greedy(std::vector<float> logits, size_t count);

  /// What plans of heads do from now on is written there; null: nowhere.
  void set_record(PlanRecord* record) { plans_.record = record; }

  /// [L, H] what a router decided for the heads of the prompt.
  std::vector<int32_t> kinds();

  /// Explicit (t, h, w) of the tokens of the next prefill(), and the delta of those after it.
  void set_positions(std::vector<std::array<int32_t, 3>> prompt, int32_t rope_delta);
  /// Runs the vision tower over images whose patches are rescaled and normalised already, in the
  /// order of merge blocks: features of all tokens, [tokens, feature_width].
  std::vector<float> encode(std::span<const VisionGrid> grids, std::span<const float> patches);
  /// What encode() gave is put where the next prompt's tokens are `image_token`, in order.
  void set_images(std::vector<float> features, int32_t image_token);
  /// The MTP module: row i is token i + 1 with the hidden state of token i. `tokens` are shifted
  /// already. Logits of every row; the module's own cache holds positions from `first` on.
  std::vector<float> mtp(std::span<const int32_t> tokens, int64_t first,
                         std::span<const float> previous, std::vector<float>* hidden);
  /// Logits of the MTP module, [rows, vocab] and [vocab] a step.
  struct DraftLogits {
    std::vector<float> prompt;
    std::vector<std::vector<float>> steps;
  };
  /// The module over all of `prompt` (computed here first) with `next` behind it, then steps of it
  /// that take `drafts` and its own hidden states. steps[i] is what drafts[i] is chosen from.
  DraftLogits draft(std::span<const int32_t> prompt, int32_t next, std::span<const int32_t> drafts);
  /// Hidden rows [n, hidden] of everything since reset().
  const std::vector<float>& hidden_rows() const { return hidden_rows_; }

 private:
  enum class Kind : uint8_t { kPrompt, kDecode };
  Driver() = default;
  /// One step of one segment at positions first ..; logits of the last `last` rows.
  std::vector<float> step(std::span<const int32_t> tokens, int64_t first, Kind kind, int64_t last,
                          const std::vector<float>* mtp_previous);
  /// A whole prompt, layer by layer in pieces.
  std::vector<float> layered(std::span<const int32_t> tokens, int64_t piece, int64_t last);

  template <class T>
  TensorView upload(const std::vector<T>& values, DType dtype, std::initializer_list<int64_t> dims);
  TensorView upload_rows(const std::vector<float>& values, int64_t width);
  std::vector<float> download(const TensorView& tensor);

  Options options_;
  std::unique_ptr<ThreadPool> pool_;
  std::optional<GpuStream> gpu_;
  Arena arena_, scratch_, inputs_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<KvStore> kv_;
  std::vector<int32_t> blocks_;
  std::vector<std::array<int32_t, 3>> prompt_positions_;
  int32_t rope_delta_ = 0;
  std::vector<float> features_;
  int32_t image_token_ = -1, next_image_row_ = 0;
  int64_t num_computed_ = 0;
  int32_t slot_ = -1;
  std::vector<float> hidden_rows_, mtp_hidden_;
  PlanSink plans_;
};

}  // namespace weft::testing
