#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "checkpoint/blob_download.h"
#include "checkpoint/config_json.h"
#include "checkpoint/hub.h"
#include "checkpoint/hub_cache.h"
#include "checkpoint/hub_session.h"
#include "checkpoint/model_file.h"

namespace weft {
namespace {

constexpr uint64_t kMaxInfoBytes = uint64_t{64} << 20;
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 46;  // 64 TiB: later sums fit 64 bits

/// What the hub says of a revision.
struct RepoInfo {
  std::string commit;
  std::vector<std::string> files;  // that weft needs
};

/// What the hub says of one file.
struct FileInfo {
  std::string file;
  std::string etag;
  std::string sha256;  // empty unless the file is in LFS
  uint64_t size = 0;
};

bool is_weight_file(std::string_view file) {
  return file.ends_with(".safetensors") || file.ends_with(".index.json");
}

bool is_part(std::string_view file, ModelParts parts) {
  switch (parts) {
    case ModelParts::kAll: return is_needed_model_file(file);
    case ModelParts::kTokenizer: return is_needed_model_file(file) && !is_weight_file(file);
    case ModelParts::kConfig: return file == "config.json" || file == "generation_config.json";
  }
  return false;
}

std::vector<std::string> needed_files(const std::vector<std::string>& all, ModelParts parts) {
  std::vector<std::string> out;
  const bool single = std::find(all.begin(), all.end(), "model.safetensors") != all.end();
  for (const std::string& file : all) {
    if (!is_part(file, parts)) continue;
    const bool other_weights = single && file != "model.safetensors" && is_weight_file(file);
    if (!other_weights) out.push_back(file);
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

Result<RepoInfo> read_repo_info(HubSession& session, FetchClient& client) {
  const std::string name = session.model().text();
  std::string body;
  FetchRequest request{.url = session.info_url()};
  const FetchResponse* current = nullptr;
  request.on_body = [&](const FetchResponse& response, std::span<const std::byte> piece) {
    if (current != &response) body.clear();  // a new attempt
    current = &response;
    body.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    return body.size() <= kMaxInfoBytes;
  };
  const auto answer = TRY(session.send_with_retries(client, request, name));
  if (answer.response.status != 200) return session.error_of(answer.response, name);
  const ConfigJson json =
      TRY(ConfigJson::parse(body, session.info_url(), {.max_bytes = kMaxInfoBytes}));
  RepoInfo out;
  out.commit = TRY(json.string("sha"));
  if (!is_plain_file_name(out.commit)) {
    return unavailable(json.field("sha") + " is not a commit: " + in_quotes(out.commit));
  }
  std::vector<std::string> all;
  for (const ConfigJson& sibling : TRY(json.objects("siblings"))) {
    all.push_back(TRY(sibling.string("rfilename")));
  }
  out.files = needed_files(all, session.options().parts);
  if (session.options().parts != ModelParts::kAll) return out;
  const auto has_weights = [](const std::string& file) { return file.ends_with(".safetensors"); };
  if (std::find(out.files.begin(), out.files.end(), "config.json") == out.files.end() ||
      std::none_of(out.files.begin(), out.files.end(), has_weights)) {
    return unsupported(name +
                       ": has no config.json with *.safetensors weights at the top of the "
                       "repository; weft reads no other format");
  }
  return out;
}

std::string plain_etag(std::string etag) {
  if (etag.starts_with("W/")) etag.erase(0, 2);
  std::erase(etag, '"');
  return etag;
}

bool is_sha256(std::string_view text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

Result<FileInfo> read_file_info(HubSession& session, FetchClient& client, const std::string& commit,
                                const std::string& file) {
  const FetchRequest request{.url = session.file_url(commit, file), .head = true};
  const auto answer = TRY(session.send_with_retries(client, request, file));
  const FetchResponse& response = answer.response;
  const bool redirect = response.status >= 300 && response.status < 400;
  if (!redirect && response.status != 200) return session.error_of(response, file);
  const auto either = [&](const char* linked, const char* own) {
    const std::string value = response.header(linked);
    return value.empty() && !redirect ? response.header(own) : value;
  };
  FileInfo out{.file = file};
  out.etag = plain_etag(either("x-linked-etag", "etag"));
  if (!is_plain_file_name(out.etag)) {
    return unavailable(file + ": the hub sent no usable ETag: " + in_quotes(out.etag));
  }
  const std::string size = either("x-linked-size", "content-length");
  const auto parsed = std::from_chars(size.data(), size.data() + size.size(), out.size);
  if (parsed.ec != std::errc() || parsed.ptr != size.data() + size.size() ||
      out.size > kMaxFileBytes) {
    return unavailable(file + ": the hub sent no usable size: " + in_quotes(size));
  }
  if (const std::string at = response.header("x-repo-commit"); !at.empty() && at != commit) {
    return unavailable(file + ": the hub answered for commit " + in_quotes(at) + " instead of " +
                       commit);
  }
  if (is_sha256(out.etag)) out.sha256 = out.etag;
  return out;
}

/// read_file_info for all files, over several connections; in the order of `files`.
Result<std::vector<FileInfo>> read_file_infos(HubSession& session, const std::string& commit,
                                              const std::vector<std::string>& files) {
  std::vector<std::optional<Result<FileInfo>>> found(files.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    FetchClient client(session.options().timeout_s);
    for (size_t i = next++; i < files.size(); i = next++) {
      found[i] = read_file_info(session, client, commit, files[i]);
      if (!found[i]->ok()) next = files.size();
    }
  };
  const size_t num_threads =
      std::min(files.size(), static_cast<size_t>(session.options().num_connections));
  std::vector<std::thread> threads;
  for (size_t i = 1; i < num_threads; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  std::vector<FileInfo> out;
  for (auto& info : found) {
    if (info && !info->ok()) return info->error();
  }
  for (auto& info : found) out.push_back(std::move(*info).value());
  return out;
}

std::string size_text(uint64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 1024 ? fmt::format("{:.2f} MiB", mib) : fmt::format("{:.2f} GiB", mib / 1024);
}

/// The blobs that are not in the cache, each once.
std::vector<FileInfo> missing_blobs(const HubCache& cache, const std::vector<FileInfo>& infos) {
  std::vector<FileInfo> out;
  std::set<std::string> seen;
  for (const FileInfo& info : infos) {
    if (is_regular_file(cache.blob(info.etag)) || !seen.insert(info.etag).second) continue;
    out.push_back(info);
  }
  return out;
}

Result<> check_disk(const HubSession& session, const HubCache& cache,
                    const std::vector<FileInfo>& missing) {
  uint64_t needed = 0;
  for (const FileInfo& info : missing) {
    needed += info.size - std::min(info.size, file_size_or_zero(cache.incomplete(info.etag)));
  }
  const HubOptions& options = session.options();
  const uint64_t free = TRY(options.free_space ? options.free_space(options.cache_dir)
                                               : free_space(options.cache_dir));
  if (needed <= free) return {};
  return exhausted(session.model().text() + ": " + size_text(needed) +
                   " are still to be downloaded, but " + options.cache_dir + " has " +
                   size_text(free) + " free; free some space or set HF_HUB_CACHE to another disk");
}

/// Locks every blob, in the order of their names, so that two processes can't wait for each other.
Result<std::vector<FileLock>> lock_blobs(HubSession& session, const HubCache& cache,
                                         std::vector<FileInfo> missing) {
  std::sort(missing.begin(), missing.end(),
            [](const FileInfo& a, const FileInfo& b) { return a.etag < b.etag; });
  std::vector<FileLock> locks;
  for (const FileInfo& info : missing) {
    locks.push_back(TRY(FileLock::acquire(cache.lock_file(info.etag), [&] {
      session.note(info.file + ": waiting for another process that downloads it");
    })));
  }
  return locks;
}

Result<> fetch_missing(HubSession& session, const HubCache& cache, const std::string& commit,
                       const std::vector<FileInfo>& infos) {
  std::vector<FileInfo> missing = missing_blobs(cache, infos);
  if (missing.empty()) return {};
  const auto locks = TRY(lock_blobs(session, cache, missing));
  missing = missing_blobs(cache, infos);  // another process may have fetched some meanwhile
  TRY(check_disk(session, cache, missing));
  // Small files first: a wrong name or an unsupported model shows early.
  std::sort(missing.begin(), missing.end(), [](const FileInfo& a, const FileInfo& b) {
    return std::tie(a.size, a.file) < std::tie(b.size, b.file);
  });
  std::vector<BlobRequest> requests;
  for (const FileInfo& info : missing) {
    requests.push_back({.file = info.file,
                        .url = session.file_url(commit, info.file),
                        .etag = info.etag,
                        .sha256 = info.sha256,
                        .size = info.size,
                        .incomplete = cache.incomplete(info.etag),
                        .blob = cache.blob(info.etag)});
  }
  return download_blobs(requests, session);
}

/// What a snapshot lacks of these parts; empty: nothing.
std::string missing_part(const std::string& snapshot, ModelParts parts) {
  if (parts == ModelParts::kAll) return missing_from_snapshot(snapshot);
  const std::string file = parts == ModelParts::kConfig ? "config.json" : "tokenizer.json";
  return is_regular_file(snapshot + "/" + file) ? "" : file;
}

}  // namespace

Result<std::string> cached_model(const ModelName& model, const HubOptions& options) {
  const HubCache cache(model, options.cache_dir);
  const std::string commit = cache.cached_commit(model.revision);
  if (commit.empty()) {
    return not_found(model.text() + " is not in the cache " + options.cache_dir);
  }
  const std::string missing = missing_part(cache.snapshot(commit), options.parts);
  if (!missing.empty()) {
    return not_found(model.text() + " is only partly in the cache: " + missing + " is missing in " +
                     cache.snapshot(commit));
  }
  return cache.snapshot(commit);
}

Result<std::string> download_model(const ModelName& model, const HubOptions& options,
                                   const ProgressSink& progress) {
  if (options.offline) {
    auto cached = cached_model(model, options);
    if (cached.ok()) return cached;
    return not_found(cached.error().message + "; HF_HUB_OFFLINE is set, so it can't be downloaded");
  }
  HubSession session(model, options, progress);
  FetchClient client(options.timeout_s);
  const RepoInfo repo = TRY(read_repo_info(session, client));
  const HubCache cache(model, options.cache_dir);
  TRY(cache.make_folders(repo.commit));
  std::vector<std::string> absent;
  for (const std::string& file : repo.files) {
    if (!is_regular_file(cache.snapshot(repo.commit) + "/" + file)) absent.push_back(file);
  }
  if (!absent.empty()) {
    const auto infos = TRY(read_file_infos(session, repo.commit, absent));
    TRY(fetch_missing(session, cache, repo.commit, infos));
    for (const FileInfo& info : infos) TRY(cache.link(repo.commit, info.file, info.etag));
  }
  TRY(cache.write_ref(model.revision, repo.commit));
  const std::string missing = missing_part(cache.snapshot(repo.commit), options.parts);
  if (!missing.empty()) {
    return data_loss(model.text() + ": the repository itself lacks " + missing);
  }
  return cache.snapshot(repo.commit);
}

Result<std::string> resolve_model(const std::string& name_or_dir, const HubOptions& options,
                                  const ProgressSink& progress) {
  if (is_directory(name_or_dir)) return name_or_dir;
  if (is_regular_file(name_or_dir)) {
    return invalid_argument(name_or_dir + " is a file; a model is a directory or ORG/NAME");
  }
  if (name_or_dir.starts_with('/') || name_or_dir.starts_with('.')) {
    return not_found("there is no directory " + name_or_dir);
  }
  const ModelName model = TRY(ModelName::parse(name_or_dir));
  auto cached = cached_model(model, options);
  if (!cached.ok()) return download_model(model, options, progress);
  // Another program's download may have ended between the weights and the tokenizer.
  const bool lacks_text =
      options.parts != ModelParts::kConfig && !is_regular_file(*cached + "/tokenizer.json");
  if (!lacks_text || options.offline) return cached;
  ModelName same = model;  // the revision may name newer weights by now
  same.revision = std::filesystem::path(*cached).filename().string();
  auto completed = download_model(same, options, progress);
  return completed.ok() ? completed : cached;
}

}  // namespace weft
