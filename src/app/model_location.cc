#include "app/model_location.h"

#include <cstdlib>
#include <filesystem>

#include "app/progress.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

Result<HubOptions> hub_options() {
  return HubOptions::from_environment([](const char* name) { return std::getenv(name); });
}

ProgressSink progress_to(ProgressLines& lines) {
  return {
      .on_file =
          [&lines](const FileProgress& p) { lines.update(p.file, p.done, p.total, p.finished); },
      .on_note = [&lines](std::string_view text) { lines.note(text); }};
}

}  // namespace

Result<std::string> demo_model_directory() {
  std::error_code ec;
  const fs::path binary = fs::read_symlink("/proc/self/exe", ec).parent_path();
  for (const fs::path& candidate :
       {binary / "../../models/demo", binary / "../share/weft/models/demo",
        fs::path(WEFT_SOURCE_DIR) / "models/demo"}) {
    if (fs::exists(candidate / "config.json", ec))
      return fs::weakly_canonical(candidate, ec).string();
  }
  return not_found(
      "the bundled demo model (models/demo) was not found beside this binary; name a MODEL");
}

Result<std::string> locate_model(const std::string& name_or_directory, ModelParts parts) {
  if (name_or_directory.empty()) return demo_model_directory();
  ProgressLines lines;
  HubOptions options = TRY(hub_options());
  options.parts = parts;
  return resolve_model(name_or_directory, options, progress_to(lines));
}

Result<std::string> pull_model(const std::string& name) {
  ProgressLines lines;
  return download_model(TRY(ModelName::parse(name)), TRY(hub_options()), progress_to(lines));
}

}  // namespace weft
