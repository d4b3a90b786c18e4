#include "app/attention_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "app/html.h"
#include "kernels/sparse_args.h"

namespace weft {
namespace {

constexpr int64_t kCells = 96;  // the picture of a head has at most so many rows

const char* name_of(int32_t kind) {
  switch (static_cast<HeadKind>(kind)) {
    case HeadKind::kFull: return "full";
    case HeadKind::kStreaming: return "streaming";
    case HeadKind::kBlocks: return "blocks";
  }
  return "?";
}

/// Rows of blocks that share a cell of the picture.
int64_t blocks_a_cell(const PlanRecord& record) {
  return std::max<int64_t>(1, (record.num_blocks + kCells - 1) / kCells);
}

/// The picture of a head: a digit 0 to 9 a cell, the share of its causal blocks that are computed,
/// and a space above the diagonal.
std::string picture(const PlanRecord& record, size_t layer, size_t head) {
  const int64_t n = record.num_blocks, step = blocks_a_cell(record), cells = (n + step - 1) / step;
  const uint8_t* blocks = record.layers[layer].blocks.data() + static_cast<int64_t>(head) * n * n;
  std::string out;
  for (int64_t row = 0; row < cells; ++row) {
    for (int64_t column = 0; column < cells; ++column) {
      int64_t kept = 0, causal = 0;
      for (int64_t b = row * step; b < std::min(n, (row + 1) * step); ++b) {
        for (int64_t c = column * step; c < std::min({n, (column + 1) * step, b + 1}); ++c) {
          ++causal;
          kept += blocks[b * n + c];
        }
      }
      // Something kept is at least 1.
      out += causal == 0 ? ' ' : static_cast<char>('0' + (kept * 9 + causal - 1) / causal);
    }
  }
  return out;
}

PlanCounters totals(const PlanRecord& record) {
  PlanCounters out;
  const int64_t n = record.num_blocks;
  for (const PlanRecord::Layer& layer : record.layers) {
    for (const int32_t kind : layer.kinds) {
      ++(kind == static_cast<int32_t>(HeadKind::kFull)        ? out.full_heads
         : kind == static_cast<int32_t>(HeadKind::kStreaming) ? out.streaming_heads
                                                              : out.block_heads);
      out.causal_blocks += n * (n + 1) / 2;
    }
    out.computed_blocks += std::count(layer.blocks.begin(), layer.blocks.end(), 1);
  }
  return out;
}

double share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

std::string summary(const AttentionReport& report) {
  const PlanCounters sum = totals(report.record);
  double mass = 0;
  int64_t heads = 0;
  for (size_t l = 0; l < report.record.layers.size(); ++l) {
    for (size_t h = 0; h < report.record.layers[l].kinds.size(); ++h, ++heads) {
      mass += head_shares(report.record, l, h).mass;
    }
  }
  return fmt::format(
      "{} tokens, {} blocks of {}; heads: {} full, {} streaming, {} by blocks; computed {:.1f} % "
      "of "
      "the causal blocks, kept {:.2f} % of the softmax",
      report.tokens, report.record.num_blocks, HeadPlan::kBlock, sum.full_heads,
      sum.streaming_heads, sum.block_heads, 100 * share(sum.computed_blocks, sum.causal_blocks),
      heads > 0 ? 100 * mass / static_cast<double>(heads) : 0);
}

constexpr const char* kStyle = R"(
body{font:14px/1.5 system-ui,sans-serif;margin:2rem;color:#222;background:#fff}
h1{font-size:1.2rem}.row{display:flex;gap:2rem;flex-wrap:wrap;align-items:flex-start}
rect{stroke:#fff;stroke-width:1;cursor:pointer}rect.on{stroke:#000;stroke-width:2}
.full{fill:#2f6fb0}.streaming{fill:#d9a13b}.blocks{fill:#3b9b6d}text{font-size:10px;fill:#666}
canvas{image-rendering:pixelated;border:1px solid #ccc;width:480px;height:480px}
.key span{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}
@media (prefers-color-scheme:dark){body{background:#181a1b;color:#ddd}rect{stroke:#181a1b}
rect.on{stroke:#fff}text{fill:#999}}
)";

constexpr const char* kScript = R"(
const canvas=document.querySelector('canvas'),label=document.querySelector('#label');
function show(cell){
  document.querySelectorAll('rect.on').forEach(r=>r.classList.remove('on'));
  cell.classList.add('on');
  const l=+cell.dataset.l,h=+cell.dataset.h,text=pictures[l][h],n=Math.round(Math.sqrt(text.length));
  canvas.width=canvas.height=n;
  const context=canvas.getContext('2d'),image=context.createImageData(n,n);
  for(let i=0;i<text.length;i++){
    const c=text[i],v=c===' '?0:+c/9;
    image.data.set(c===' '?[0,0,0,0]:[235-190*v,238-120*v,240-60*v,255],4*i);
  }
  context.putImageData(image,0,0);
  label.textContent=cell.querySelector('title').textContent;
}
document.querySelectorAll('rect[data-l]').forEach(r=>{
  r.addEventListener('mouseenter',()=>show(r));r.addEventListener('click',()=>show(r));});
const first=document.querySelector('rect.blocks')||document.querySelector('rect[data-l]');
if(first)show(first);
)";

}  // namespace

HeadShares head_shares(const PlanRecord& record, size_t layer, size_t head) {
  const PlanRecord::Layer& plan = record.layers[layer];
  const int64_t n = record.num_blocks;
  const auto first = static_cast<int64_t>(head) * n;
  HeadShares out;
  const auto begin = plan.blocks.begin() + first * n;
  out.computed = share(std::count(begin, begin + n * n, 1), n * (n + 1) / 2);
  const std::vector<float>& masses = plan.mass.empty() ? plan.estimated : plan.mass;
  for (int64_t b = 0; b < n; ++b) {
    const double mass = masses[static_cast<size_t>(first + b)];
    out.mass += mass / static_cast<double>(n);
    out.least_mass = std::min(out.least_mass, mass);
  }
  return out;
}

std::string attention_page(const AttentionReport& report) {
  const PlanRecord& record = report.record;
  const size_t heads = record.layers.empty() ? 0 : record.layers[0].kinds.size();
  constexpr int kSize = 18, kLeft = 34, kTop = 16;
  std::string grid;
  for (size_t h = 0; h < heads; h += 4) {
    grid +=
        fmt::format("<text x=\"{}\" y=\"11\">{}</text>", kLeft + kSize * static_cast<int>(h), h);
  }
  std::string pictures;
  for (size_t l = 0; l < record.layers.size(); ++l) {
    const int y = kTop + kSize * static_cast<int>(l);
    grid += fmt::format("<text x=\"0\" y=\"{}\">{}</text>", y + 13, l);
    pictures += l > 0 ? ",\n[" : "[";
    for (size_t h = 0; h < record.layers[l].kinds.size(); ++h) {
      const char* kind = name_of(record.layers[l].kinds[h]);
      const HeadShares shares = head_shares(record, l, h);
      grid += fmt::format(
          "<rect data-l=\"{}\" data-h=\"{}\" class=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" "
          "height=\"{}\" opacity=\"{:.2f}\"><title>layer {}, head {}: {}, {:.1f} % of the blocks, "
          "{:.2f} % of the softmax kept (least in a row of blocks {:.2f} %)</title></rect>",
          l, h, kind, kLeft + kSize * static_cast<int>(h), y, kSize, kSize,
          0.25 + 0.75 * shares.computed, l, h, kind, 100 * shares.computed, 100 * shares.mass,
          100 * shares.least_mass);
      pictures += fmt::format("{}\"{}\"", h > 0 ? "," : "", picture(record, l, h));
    }
    pictures += "]";
  }
  const int width = kLeft + kSize * static_cast<int>(heads);
  const int height = kTop + kSize * static_cast<int>(record.layers.size());
  const int64_t cell = blocks_a_cell(record) * HeadPlan::kBlock;
  return fmt::format(
      "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Attention of {0}</title>"
      "<style>{1}</style><h1>What the heads of {0} see of a prompt</h1><p>{2}</p><p>{3}</p>"
      "<p class=\"key\">Layers down, heads across; the paler, the fewer blocks.<span "
      "style=\"background:#2f6fb0\"></span>full<span style=\"background:#d9a13b\"></span>streaming"
      "<span style=\"background:#3b9b6d\"></span>blocks</p><div class=\"row\"><svg width=\"{4}\" "
      "height=\"{5}\" role=\"img\" aria-label=\"routes by layer and head\">{6}</svg><div><p "
      "id=\"label\"></p><canvas></canvas><p>Rows of the prompt down, keys across; a cell is {7} "
      "tokens.</p></div></div><script>const pictures=[{8}];{9}</script></html>\n",
      html_escaped(report.model), kStyle, html_escaped(report.prefill),
      html_escaped(summary(report)), width, height, grid, cell, pictures, kScript);
}

std::string attention_text(const AttentionReport& report) {
  std::string out = fmt::format("{}\n{}\n{}\n", report.model, report.prefill, summary(report));
  for (size_t l = 0; l < report.record.layers.size(); ++l) {
    std::string kinds;
    double computed = 0, mass = 0, least = 1;
    const size_t heads = report.record.layers[l].kinds.size();
    for (size_t h = 0; h < heads; ++h) {
      kinds += name_of(report.record.layers[l].kinds[h])[0];
      const HeadShares shares = head_shares(report.record, l, h);
      computed += shares.computed / static_cast<double>(heads);
      mass += shares.mass / static_cast<double>(heads);
      least = std::min(least, shares.least_mass);
    }
    out += fmt::format("layer {:>3}  {}  blocks {:5.1f} %  softmax {:6.2f} %  least {:6.2f} %\n", l,
                       kinds, 100 * computed, 100 * mass, 100 * least);
  }
  return out;
}

}  // namespace weft
