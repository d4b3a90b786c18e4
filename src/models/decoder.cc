#include "models/decoder.h"

#include <algorithm>

#include "device/gpu.h"
#include "models/prefill.h"

namespace weft {
namespace {

/// Steps that ask for more rows compute all rows to the end: no memory is planned for them.
constexpr int64_t kMostAsked = 1024;
constexpr int64_t kLargeDraftHead = int64_t{1} << 26;  // weights

}  // namespace

Decoder::Decoder(const ModelSpec& spec, const LoadOptions& options, const OpTable* ops)
    : spec_(spec), options_(options), ops_(ops) {
  if (options_.num_threads <= 0) options_.num_threads = usable_cpus();
  mixer_options_ = {.hidden = spec_.hidden,
                    .eps = spec_.norm_eps,
                    .norm_minus_one = spec_.norm_minus_one,
                    .format = options_.format,
                    .kv_format = options_.kv_format,
                    .state_dtype = options_.state_dtype,
                    .block_size = options_.block_size,
                    .kv_scales = &kv_scales_,
                    .rope = &rope_table_};
  const auto append = [&](Layers& layers, const LayerSpec& layer) {
    layers.push_back(std::make_unique<DecoderLayer>(layer, mixer_options_));
    cache_specs_.push_back(layers.back()->mixer->cache_spec());
  };
  for (const LayerSpec& layer : spec_.layers) append(layers_, layer);
  if (spec_.vision) vision_.emplace(*spec_.vision);
  if (!spec_.mtp) return;
  mtp_.emplace();
  mixer_options_.format = mtp_format();
  for (int i = 0; i < spec_.mtp->num_layers; ++i) append(mtp_->layers, spec_.mtp->layer);
}

void Decoder::declare(WeightPlan& plan) {
  const NameMap& names = spec_.names;
  const TensorPart embedding{names.model + "embed_tokens.weight", {spec_.vocab, spec_.hidden}};
  if (!head_is_embedding()) plan.table(embedding_, embedding);
  declare_layers(plan, layers_, options_.format, names.model + "layers.");
  norm_.declare(plan, names.model + "norm.weight", spec_.hidden, spec_.norm_minus_one);
  TensorPart head = embedding;
  if (!spec_.tied_head) head.name = names.head;
  head_.declare(plan, head_format(), {head});
  if (mtp_) declare_mtp(plan, head);
  if (vision_) declare_vision(plan);
  for (const std::string& prefix : names.ignored_prefixes) plan.ignore_prefix(prefix);
  for (const std::string& part : names.ignored_parts) plan.ignore_containing(part);
}

/// The head keeps its precision beside fp8 layers, as in checkpoints of that format.
WeightFormat Decoder::head_format() const {
  return options_.format == WeightFormat::kFp8Block ? WeightFormat::kBf16 : options_.format;
}

/// True where one copy of a tied tensor serves as the head's matrix and as the table of embed.
bool Decoder::head_is_embedding() const {
  if (!spec_.tied_head || ops_ == nullptr) return false;
  const Weight head{.shape = {head_format(), spec_.vocab, spec_.hidden}};
  return ops_->weight_rows(head).rank > 0;
}

void Decoder::declare_layers(WeightPlan& plan, const Layers& layers, WeightFormat format,
                             const std::string& prefix) {
  for (size_t i = 0; i < layers.size(); ++i) {
    DecoderLayer& layer = *layers[i];
    const std::string p = prefix + std::to_string(i) + ".";
    const bool minus_one = spec_.norm_minus_one;
    layer.input_norm.declare(plan, p + "input_layernorm.weight", spec_.hidden, minus_one);
    layer.mixer->declare(plan, p);
    layer.post_norm.declare(plan, p + "post_attention_layernorm.weight", spec_.hidden, minus_one);
    layer.mlp.declare(plan, format, p + "mlp.", spec_.hidden);
  }
}

void Decoder::declare_mtp(WeightPlan& plan, const TensorPart& head) {
  const MtpNames& names = spec_.names.mtp;
  const int64_t hidden = spec_.hidden;
  const bool minus_one = spec_.norm_minus_one;
  mtp_->embedding_norm.declare(plan, names.embedding_norm, hidden, minus_one);
  mtp_->hidden_norm.declare(plan, names.hidden_norm, hidden, minus_one);
  mtp_->fc.declare(plan, mtp_format(), {{names.fc, {hidden, 2 * hidden}}});
  declare_layers(plan, mtp_->layers, mtp_format(), names.layers);
  mtp_->norm.declare(plan, names.norm, hidden, minus_one);
  if (!options_.draft_head || head_format() == WeightFormat::kInt4) return;
  mtp_->head.emplace();
  // Few weights are a matter of latency, and that of decode products is the lowest.
  const bool large = spec_.vocab * hidden >= kLargeDraftHead;
  mtp_->head->declare(plan, ops_ && large ? ops_->draft_format : WeightFormat::kInt4, {head});
}

/// Without images the tower's tensors must still be there and fit.
void Decoder::declare_vision(WeightPlan& plan) {
  plan.check_only(!takes_images());
  const bool f32 = options_.format == WeightFormat::kF32;
  vision_->declare(plan, f32 ? WeightFormat::kF32 : WeightFormat::kBf16, spec_.names.vision);
  plan.check_only(false);
}

Result<> Decoder::load(const Checkpoint* checkpoint, Stream& stream) {
  rope_ = TRY(Rope::create(spec_.rope, num_positions(), stream, ops_->device));
  rope_table_ = rope_.table();
  WeightPlan plan(ops_, options_.dummy_weights ? nullptr : checkpoint);
  declare(plan);
  weights_ = TRY(plan.load(stream, options_.dummy_weights, options_.progress));
  for (const auto& layer : layers_) TRY(layer->mixer->prepare(stream, ops_->device));
  if (mtp_) {
    for (const auto& layer : mtp_->layers) TRY(layer->mixer->prepare(stream, ops_->device));
  }
  if (head_is_embedding()) embedding_ = ops_->weight_rows(head_.weight());
  if (kv_has_static_scales(options_.kv_format)) TRY(load_kv_scales(stream));
  if (takes_images()) TRY(vision_->prepare(stream, *ops_, options_.max_image_patches));
  return {};
}

/// Puts the static scales of the cache on the device.
Result<> Decoder::load_kv_scales(Stream& stream) {
  CHECK(options_.kv_scales.size() == cache_specs_.size(), "a static KV format without scales");
  int64_t count = 0;
  for (const KvChannels& layer : options_.kv_scales) {
    count += std::ssize(layer.k) + std::ssize(layer.v);
  }
  kv_scale_buffer_ = TRY(Buffer::allocate(ops_->device, count * 4));
  auto* at = reinterpret_cast<float*>(kv_scale_buffer_.data());
  const auto put = [&](const std::vector<float>& scales) {
    const float* where = at;
    copy_bytes(stream, at, scales.data(), std::ssize(scales) * 4);
    at += scales.size();
    return where;
  };
  for (size_t i = 0; i < cache_specs_.size(); ++i) {
    KvScalePointers& layer = kv_scales_.emplace_back();
    const auto* paged = std::get_if<PagedSpec>(&cache_specs_[i]);
    if (!paged) continue;
    const auto channels = static_cast<size_t>(paged->heads * paged->head_dim);
    const KvChannels& scales = options_.kv_scales[i];
    CHECK(scales.k.size() == channels && scales.v.size() == channels);
    layer.k = put(scales.k);
    layer.v = put(scales.v);
  }
  synchronize(stream);
  return {};
}

int64_t Decoder::arena_bytes(int64_t rows) const {
  if (has_prefill_router(spec_)) rows = std::max<int64_t>(rows, 2 * RouterArgs::kPooled);
  const StepQuery query = step_query(rows);
  int64_t layer_bytes = 0;
  const auto grow = [&](const Layers& layers) {
    for (const auto& layer : layers) {
      layer_bytes =
          std::max({layer_bytes, layer->mixer->arena_bytes(query), layer->mlp.arena_bytes(query)});
    }
  };
  grow(layers_);
  if (mtp_) grow(mtp_->layers);
  // residual, normed and out of the layers; with MTP also its own and the concatenation.
  int64_t arena =
      layer_bytes + query.f32_bytes(spec_.hidden) + 2 * query.activation_bytes(spec_.hidden);
  arena += step_query(std::min(rows, kMostAsked)).f32_bytes(spec_.hidden);
  if (takes_images()) arena += query.activation_bytes(spec_.hidden);  // of deepstack
  if (mtp_) {
    arena += query.f32_bytes(spec_.hidden) + 3 * query.activation_bytes(spec_.hidden) +
             query.activation_bytes(2 * spec_.hidden);
  }
  return std::max(arena, scratch_bytes(query));
}

StepQuery Decoder::step_query(int64_t rows) const {
  return {.ops = *ops_,
          .rows = rows,
          .max_seqs = std::min(rows, options_.max_num_seqs),
          .num_threads = options_.num_threads,
          .max_len = num_positions()};
}

int64_t Decoder::scratch_bytes(const StepQuery& query) const {
  int64_t bytes = head_.scratch_bytes(query);
  const auto grow = [&](const Layers& layers) {
    for (const auto& layer : layers) {
      bytes =
          std::max({bytes, layer->mixer->scratch_bytes(query), layer->mlp.scratch_bytes(query)});
    }
  };
  grow(layers_);
  if (mtp_) {
    bytes = std::max(bytes, mtp_->fc.scratch_bytes(query));
    if (mtp_->head) bytes = std::max(bytes, mtp_->head->scratch_bytes(query));
    grow(mtp_->layers);
  }
  return bytes;
}

/// Tokens to vectors; those of images to what the vision tower made of them.
void Decoder::embed(StepContext& context, TensorView out) const {
  context.ops.embed(context.stream, {.ids = context.batch.ids, .table = embedding_, .out = out});
  const ImageRows& images = context.batch.images;
  for (const ImageRun& run : images.runs) {
    context.ops.embed(context.stream, {.ids = images.rows.rows(run.first, run.first + run.count),
                                       .table = images.features.columns(0, spec_.hidden),
                                       .out = out.rows(run.row, run.row + run.count)});
  }
}

/// residual += what the tower adds behind this layer, on rows of images.
void Decoder::add_deepstack(StepContext& context, size_t layer, TensorView residual) const {
  const ImageRows& images = context.batch.images;
  if (!vision_ || layer >= vision_->spec().deepstack.size()) return;
  const int64_t first = static_cast<int64_t>(layer + 1) * spec_.hidden;
  for (const ImageRun& run : images.runs) {
    const ArenaScope scope(context.arena);
    TensorView added = take_rows(context, run.count, spec_.hidden);
    context.ops.embed(context.stream,
                      {.ids = images.rows.rows(run.first, run.first + run.count),
                       .table = images.features.columns(first, first + spec_.hidden),
                       .out = added});
    context.ops.add(context.stream,
                    {.x = added, .out = residual.rows(run.row, run.row + run.count)});
  }
}

TensorView Decoder::run_layers(StepContext& context, const Layers& layers, int first_layer,
                               TensorView residual, const RmsNorm& final_norm) const {
  const int64_t rows = residual.dim(0);
  const float eps = spec_.norm_eps;
  TensorView normed = take_rows(context, rows, spec_.hidden);
  TensorView out = take_rows(context, rows, spec_.hidden);
  bool pending = false;  // `out` has to be added to the residual
  const auto norm_with = [&](const RmsNorm& norm) {
    return pending ? norm.args(out, residual, normed, eps) : norm.args(residual, {}, normed, eps);
  };
  for (size_t i = 0; i < layers.size(); ++i) {
    const DecoderLayer& layer = *layers[i];
    const bool last = i + 1 == layers.size() && narrows(context);
    StepContext part = context;
    part.last = last;
    layer.mixer->forward(part, LayerId{first_layer + static_cast<int>(i)},
                         norm_with(layer.input_norm), residual);
    if (last) {
      return end_asked(context, layer, residual, normed, out, final_norm);
    }
    pending =
        layer.mlp.forward(context, layer.post_norm.args(residual, {}, normed, eps), out, residual);
    if (first_layer == 0) add_deepstack(context, i, residual);
  }
  context.ops.rms_norm(context.stream, norm_with(final_norm));
  if (context.asked == nullptr || context.asked->rows.dim(0) == rows) return normed;
  const TensorView asked = out.rows(0, context.asked->rows.dim(0));
  context.ops.embed(context.stream, {.ids = context.asked->rows, .table = normed, .out = asked});
  return asked;
}

/// Whether the last layer ends with the asked rows.
bool Decoder::narrows(const StepContext& context) const {
  if (context.asked == nullptr) return false;
  const int64_t asked = context.asked->rows.dim(0);
  const bool deepstack = vision_ && vision_->spec().deepstack.size() >= layers_.size();
  return !deepstack && asked < context.batch.num_rows() && asked <= kMostAsked;
}

/// What is behind the mixer of the last layer, for the rows that are asked.
TensorView Decoder::end_asked(StepContext& context, const DecoderLayer& layer, TensorView residual,
                              TensorView normed, TensorView out, const RmsNorm& final_norm) const {
  const AskedRows& asked = *context.asked;
  const int64_t count = asked.rows.dim(0);
  normed = normed.rows(0, count);
  if (count == 0) return normed;
  out = out.rows(0, count);
  const TensorView few = take_rows_f32(context.arena, count, spec_.hidden);
  context.ops.embed(context.stream, {.ids = asked.rows, .table = residual, .out = few});
  StepBatch batch = context.batch;
  batch.prompt_rows = asked.prompt_rows;
  StepContext part{context.stream, context.ops, context.arena, batch, context.kv};
  const float eps = spec_.norm_eps;
  const bool pending =
      layer.mlp.forward(part, layer.post_norm.args(few, {}, normed, eps), out, few);
  context.ops.rms_norm(context.stream, pending ? final_norm.args(out, few, normed, eps)
                                               : final_norm.args(few, {}, normed, eps));
  return normed;
}

/// One layer on the rows of a piece; the residual is whole afterwards, but for StepContext::last.
void Decoder::run_layer(StepContext& context, LayerId id, TensorView residual) const {
  const ArenaScope scope(context.arena);
  const DecoderLayer& layer = *layers_[static_cast<size_t>(id.value)];
  const int64_t rows = residual.dim(0);
  TensorView normed = take_rows(context, rows, spec_.hidden);
  const float eps = spec_.norm_eps;
  layer.mixer->forward(context, id, layer.input_norm.args(residual, {}, normed, eps), residual);
  const int64_t first = context.last ? context.asked->first_row : 0;
  if (context.last && context.asked->rows.dim(0) == 0) return;
  StepBatch batch = context.batch;
  batch.prompt_rows -= first;
  StepContext part{context.stream, context.ops, context.arena, batch, context.kv};
  residual = residual.rows(first, rows);
  normed = normed.rows(first, rows);
  const TensorView out = take_rows(context, rows - first, spec_.hidden);
  if (layer.mlp.forward(part, layer.post_norm.args(residual, {}, normed, eps), out, residual)) {
    context.ops.add(context.stream, {.x = out, .out = residual});
  }
}

/// What heads see of this layer, from the ends of the prompt.
void Decoder::decide(StepContext& context, const LayeredPrompt& prompt, LayerId id) const {
  StepContext ends{context.stream, context.ops, context.arena,
                   *prompt.ends,   context.kv,  context.plans};
  const ArenaScope scope(context.arena);
  const int64_t n = prompt.num_ends, rows = prompt.residual.dim(0);
  const int64_t head = std::min<int64_t>(n, RouterArgs::kPooled);
  TensorView gathered = take_rows_f32(context.arena, n, spec_.hidden);
  TensorView normed = take_rows(context, n, spec_.hidden);
  const int64_t row_bytes = spec_.hidden * 4;
  copy_bytes(context.stream, gathered.data, prompt.residual.data, head * row_bytes);
  if (n > head) {
    copy_bytes(context.stream, gathered.row<float>(head),
               prompt.residual.row<float>(rows - (n - head)), (n - head) * row_bytes);
  }
  const DecoderLayer& layer = *layers_[static_cast<size_t>(id.value)];
  layer.input_norm.forward(ends, gathered, {}, normed, spec_.norm_eps);
  layer.mixer->decide(ends, id, normed);
}

void Decoder::run_prompt_layers(StepContext& context, const LayeredPrompt& prompt) const {
  CHECK(prompt.residual.contiguous());
  const auto for_pieces = [&](auto&& body) {
    int64_t row = 0;
    for (const StepBatch& piece : prompt.pieces) {
      StepContext part{context.stream, context.ops, context.arena,
                       piece,          context.kv,  context.plans};
      body(part, prompt.residual.rows(row, row + piece.num_rows()));
      row += piece.num_rows();
    }
  };
  if (prompt.first_layer == 0) {
    for_pieces([&](StepContext& part, TensorView residual) { embed(part, residual); });
  }
  // Where all asked rows are the last piece's, the others need nothing of the last layer's output.
  const StepBatch& end = prompt.pieces.back();
  const int64_t before = prompt.residual.dim(0) - end.num_rows();
  const bool narrows = context.asked != nullptr && context.asked->rows.dim(0) > 0 &&
                       context.asked->first_row >= before;
  for (int i = prompt.first_layer; i < prompt.last_layer; ++i) {
    decide(context, prompt, LayerId{i});
    for_pieces([&](StepContext& part, TensorView residual) {
      AskedRows asked;
      if (narrows && static_cast<size_t>(i) + 1 == layers_.size()) {
        asked = *context.asked;
        if (&part.batch == &end) {
          asked.first_row -= before;
        } else {
          asked = {asked.rows.rows(0, 0)};
        }
        part.asked = &asked;
        part.last = true;
      }
      run_layer(part, LayerId{i}, residual);
    });
  }
}

void Decoder::final_norm(StepContext& context, TensorView rows, TensorView out) const {
  norm_.forward(context, rows, {}, out, spec_.norm_eps);
}

TensorView Decoder::hidden(StepContext& context) const {
  TensorView residual = take_rows_f32(context.arena, context.batch.num_rows(), spec_.hidden);
  embed(context, residual);
  return run_layers(context, layers_, 0, residual, norm_);
}

void Decoder::logits(StepContext& context, TensorView rows, int64_t prompt_rows,
                     TensorView out) const {
  head_.forward(context, rows, out, prompt_rows);
}

void Decoder::tokens(StepContext& context, TensorView rows, const SampleArgs& choice) const {
  LinearArgs args = head_.args(context, rows, choice.logits, Epilogue::kStore);
  args.prompt_rows = 0;
  // Of bf16 weights drafts have the arithmetic of everything else.
  if (head_.weight().shape.format == WeightFormat::kBf16) {
    return tokens_of_drafts(context.ops, context.stream, args, choice);
  }
  context.ops.linear(context.stream, args);
  context.ops.sampling->sample(context.stream, choice);
}

const Linear& Decoder::draft_head() const {
  return mtp_ && mtp_->head ? *mtp_->head : head_;
}

void Decoder::draft_logits(StepContext& context, TensorView rows, TensorView out) const {
  draft_head().forward(context, rows, out, 0);
}

void Decoder::draft_tokens(StepContext& context, TensorView rows, const SampleArgs& choice) const {
  LinearArgs args = draft_head().args(context, rows, choice.logits, Epilogue::kStore);
  args.prompt_rows = 0;
  tokens_of_drafts(context.ops, context.stream, args, choice);
}

void Decoder::replay_states(StepContext& context, const KeptInputs::Rows& rows) const {
  for (size_t i = 0; i < layers_.size(); ++i) {
    layers_[i]->mixer->replay(context, LayerId{static_cast<int32_t>(i)}, rows);
  }
}

/// What drafts are decides no bit of an answer: their rows may have the faster arithmetic.
bool Decoder::drafts_as_prompts(const StepBatch& batch, int64_t rows) const {
  constexpr int64_t kFew = 16;
  return mtp_->fc.weight().shape.format == WeightFormat::kFp8Block && rows > kFew &&
         batch.num_prompt_segments == 0;
}

TensorView Decoder::mtp_hidden(StepContext& given, TensorView previous) const {
  CHECK(mtp_.has_value(), "the model has no MTP module");
  const int64_t rows = given.batch.num_rows(), hidden = spec_.hidden;
  StepBatch batch = given.batch;
  if (drafts_as_prompts(batch, rows)) batch.prompt_rows = rows;
  AskedRows asked = given.asked != nullptr ? *given.asked : AskedRows{};
  if (given.asked != nullptr && drafts_as_prompts(batch, asked.rows.dim(0))) {
    asked.prompt_rows = asked.rows.dim(0);
  }
  StepContext context{.stream = given.stream,
                      .ops = given.ops,
                      .arena = given.arena,
                      .batch = batch,
                      .kv = given.kv,
                      .asked = given.asked != nullptr ? &asked : nullptr};
  TensorView residual = take_rows_f32(context.arena, rows, hidden);
  {
    const ArenaScope scope(context.arena);
    TensorView both = take_rows(context, rows, 2 * hidden);
    embed(context, residual);
    mtp_->embedding_norm.forward(context, residual, {}, both.columns(0, hidden), spec_.norm_eps);
    mtp_->hidden_norm.forward(context, previous, {}, both.columns(hidden, 2 * hidden),
                              spec_.norm_eps);
    mtp_->fc.forward(context, both, residual);
  }
  return run_layers(context, mtp_->layers, static_cast<int>(layers_.size()), residual, mtp_->norm);
}

void Model::run_prompt_layers(StepContext&, const LayeredPrompt&) const {
  CHECK(false, "the model's prompts are not computed layer by layer");
}

void Model::final_norm(StepContext&, TensorView, TensorView) const {
  CHECK(false, "the model's prompts are not computed layer by layer");
}

void Model::replay_states(StepContext&, const KeptInputs::Rows&) const {
  CHECK(false, "the model has no recurrent layers");
}

TensorView Model::mtp_hidden(StepContext&, TensorView) const {
  CHECK(false, "the model has no MTP module");
  return {};
}

Result<std::unique_ptr<Model>> Model::load(const ModelSpec& spec, const Checkpoint* checkpoint,
                                           const LoadOptions& options, Stream& stream,
                                           const OpTable& ops) {
  CHECK(checkpoint || options.dummy_weights, "no checkpoint");
  ModelSpec adapted = spec;
  if (checkpoint && !options.dummy_weights) {
    adapt_to_checkpoint(adapted, *checkpoint);
    TRY(check_prefill_router(adapted, *checkpoint));
  }
  if (!adapted.prefill_refusal.empty()) return unsupported(adapted.prefill_refusal);
  CHECK(ops.sparse != nullptr || !has_sparse_prefill(adapted), "no kernels for sparse prompts");
  auto decoder = std::make_unique<Decoder>(adapted, options, &ops);
  TRY(decoder->load(checkpoint, stream));
  return std::unique_ptr<Model>(std::move(decoder));
}

ModelFootprint measure_model(const ModelSpec& spec, const LoadOptions& options, const OpTable& ops,
                             const Checkpoint* checkpoint) {
  auto decoder = std::make_shared<Decoder>(spec, options, &ops);
  WeightPlan plan(&ops, checkpoint);
  decoder->declare(plan);
  return {.parameters = plan.parameters(),
          .weight_bytes = plan.bytes(),
          .cache_specs = {decoder->cache_specs().begin(), decoder->cache_specs().end()},
          .rope_bytes_per_position = Rope::bytes(spec.rope, 1),
          .arena_bytes = [decoder](int64_t rows) { return decoder->arena_bytes(rows); },
          .vision = {decoder, decoder->vision()}};
}

int64_t count_parameters(const ModelSpec& spec) {
  Decoder decoder(spec, {}, nullptr);
  WeightPlan plan(nullptr, nullptr);
  decoder.declare(plan);
  return plan.parameters();
}

}  // namespace weft
