#include "checkpoint/hub.h"

#include <gmock/gmock.h>
#include <sys/file.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <random>
#include <thread>

#include "checkpoint/checkpoint.h"
#include "checkpoint/config_json.h"
#include "checkpoint/safetensors_writer.h"
#include "checkpoint/test_files.h"
#include "tests/hub/fake_hub.h"

namespace weft {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using testing::FakeHub;
using ::testing::HasSubstr;
using testing::read_file;
using testing::TempDir;
using testing::write_file;
namespace fs = std::filesystem;

const char* const kCommit = "0123456789abcdef0123456789abcdef01234567";
const ModelName kModel{.org = "org", .name = "tiny", .revision = "main"};

class Hub : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(files());
    std::vector<uint32_t> noise(100000);  // 400 kB: thirteen ranges
    std::mt19937 random(7);
    for (uint32_t& value : noise) value = random();
    ASSERT_TRUE(write_safetensors(files() + "/model.safetensors",
                                  {{"w", DType::kI32, {100000}, std::as_bytes(std::span(noise))}})
                    .ok());
    write_file(files() + "/config.json", R"({"model_type": "tiny", "eos_token_id": 1})");
    write_file(files() + "/tokenizer.json", "{}");
    write_file(files() + "/added_tokens.json", "");
    for (const char* name : {"pytorch_model.bin", "modeling_tiny.py", "README.md", "x.gguf"}) {
      write_file(files() + "/" + name, "not for weft");
    }
    options_.cache_dir = dir_.file("cache/hub");
    options_.range_bytes = 32 << 10;
    options_.num_connections = 4;
    options_.num_retries = 3;
    options_.first_backoff_s = 0.01;
    options_.timeout_s = 30;  // the machine may be busy
  }

  std::string files() const { return dir_.file("files"); }

  /// Starts the hub. `model` and `faults` are JSON: more fields of the model, a list's contents.
  void start(const std::string& model = "", const std::string& faults = "") {
    const std::string more = model.empty() ? "" : ", " + model;
    hub_.reset();
    fs::create_directories(dir_.file("hub"));
    hub_ = std::make_unique<FakeHub>(
        R"({"models": {"org/tiny": {"dir": ")" + files() + R"(", "sha": ")" + kCommit +
            R"(", "lfs": ["model.safetensors"])" + more + R"(}}, "faults": [)" + faults + "]}",
        dir_.file("hub"));
    options_.endpoint = hub_->endpoint();
  }

  ProgressSink sink() {
    return {.on_file =
                [this](const FileProgress& progress) {
                  EXPECT_LE(progress.done, progress.total);
                  if (progress.finished) finished_.emplace_back(progress.file);
                },
            .on_note = [this](std::string_view text) { notes_ += std::string(text) + "\n"; }};
  }

  Result<std::string> download(const ModelName& model = kModel) {
    return download_model(model, options_, sink());
  }
  std::string failure(const ModelName& model = kModel) {
    const auto result = download(model);
    return result.ok() ? "no failure" : result.error().message;
  }

  std::string folder() const { return options_.cache_dir + "/models--org--tiny"; }
  std::string snapshot() const { return folder() + "/snapshots/" + kCommit; }
  std::string weights() const { return read_file(files() + "/model.safetensors"); }
  /// The blob of the weights; its name is their SHA-256.
  std::string blob() const {
    return fs::read_symlink(snapshot() + "/model.safetensors").filename().string();
  }
  void expect_whole_model() {
    EXPECT_EQ(read_file(snapshot() + "/model.safetensors"), weights());
    EXPECT_EQ(read_file(snapshot() + "/config.json"), read_file(files() + "/config.json"));
    for (const auto& item : fs::directory_iterator(folder() + "/blobs")) {
      EXPECT_NE(item.path().extension(), ".incomplete");
    }
  }

  TempDir dir_;
  HubOptions options_;
  std::unique_ptr<FakeHub> hub_;
  std::string notes_;
  std::vector<std::string> finished_;
};

TEST_F(Hub, WholeModelInTheSharedLayout) {
  start();
  const auto path = download();
  ASSERT_TRUE(path.ok()) << path.error().message;
  EXPECT_EQ(*path, snapshot());
  expect_whole_model();
  EXPECT_EQ(read_file(folder() + "/refs/main"), kCommit);
  EXPECT_EQ(fs::read_symlink(snapshot() + "/model.safetensors").string(), "../../blobs/" + blob());
  EXPECT_EQ(blob().size(), 64u);
  EXPECT_EQ(finished_.size(), 4u);
  for (const char* name : {"pytorch_model.bin", "modeling_tiny.py", "README.md", "x.gguf"}) {
    EXPECT_TRUE(hub_->requests("", name).empty()) << name;
  }
  // What the engine opens next.
  EXPECT_TRUE(Checkpoint::open(*path).ok());
  EXPECT_TRUE(load_config(*path).ok());

  // Again: the hub is asked for the commit and for nothing else.
  const size_t before = hub_->requests().size();
  ASSERT_TRUE(download().ok());
  EXPECT_EQ(hub_->requests().size(), before + 1);
}

TEST_F(Hub, OnlyTheWantedPartsAreDownloaded) {
  start();
  options_.parts = ModelParts::kConfig;
  const auto config = download();
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_TRUE(load_config(*config).ok());
  EXPECT_EQ(finished_, std::vector<std::string>{"config.json"});
  options_.parts = ModelParts::kTokenizer;
  EXPECT_FALSE(cached_model(kModel, options_).ok());
  ASSERT_TRUE(download().ok());
  EXPECT_EQ(finished_.size(), 3u);
  EXPECT_TRUE(hub_->requests("", "/org/tiny/model.safetensors").empty());
  options_.parts = ModelParts::kAll;
  EXPECT_FALSE(cached_model(kModel, options_).ok());
  ASSERT_TRUE(download().ok());
  expect_whole_model();
  EXPECT_EQ(finished_.size(), 4u);
}

TEST_F(Hub, LargeFilesComeInParallelRanges) {
  start();
  ASSERT_TRUE(download().ok());
  const auto gets = hub_->requests("GET", "/org/tiny/model.safetensors");
  EXPECT_EQ(gets.size(), (weights().size() + options_.range_bytes - 1) / options_.range_bytes);
  uint64_t sent = 0;
  for (const auto& get : gets) {
    ASSERT_TRUE(get.range.has_value());
    EXPECT_LE(get.range->second - get.range->first, options_.range_bytes);
    sent += get.sent;
  }
  EXPECT_EQ(sent, weights().size());
  expect_whole_model();
}

TEST_F(Hub, BrokenConnectionGoesOnAtTheNextByte) {
  start("", R"({"server": "storage", "method": "GET", "path": "model", "drop_after": 5000,
               "skip": 1, "times": 2})");
  const auto path = download();
  ASSERT_TRUE(path.ok()) << path.error().message;
  expect_whole_model();
  uint64_t sent = 0;
  for (const auto& get : hub_->requests("GET", "/org/tiny/model.safetensors")) sent += get.sent;
  EXPECT_EQ(sent, weights().size());  // not a byte twice
  EXPECT_THAT(notes_, HasSubstr("trying again"));
}

TEST_F(Hub, AnInterruptedDownloadIsResumedByTheNextRun) {
  start("", R"({"server": "storage", "method": "GET", "path": "model", "drop_after": 5000,
               "skip": 4})");
  options_.num_retries = 0;
  options_.num_connections = 1;
  EXPECT_THAT(failure(), HasSubstr("model.safetensors: the download failed after 1 attempts"));
  EXPECT_FALSE(fs::exists(folder() + "/refs/main"));
  std::string incomplete;
  for (const auto& item : fs::directory_iterator(folder() + "/blobs")) {
    if (item.path().extension() == ".incomplete") incomplete = item.path();
  }
  const std::string prefix = read_file(incomplete);
  EXPECT_EQ(prefix.size(), 4 * options_.range_bytes + 5000);
  EXPECT_EQ(prefix, weights().substr(0, prefix.size()));

  start();
  ASSERT_TRUE(download().ok());
  expect_whole_model();
  const auto gets = hub_->requests("GET", "/org/tiny/model.safetensors");
  ASSERT_FALSE(gets.empty());
  EXPECT_EQ(gets[0].range->first, prefix.size());
}

TEST_F(Hub, APrefixOfHuggingfaceHubIsResumed) {
  start();
  ASSERT_TRUE(download().ok());
  const std::string etag = blob();
  fs::remove_all(snapshot());
  fs::remove(folder() + "/blobs/" + etag);
  write_file(folder() + "/blobs/" + etag + ".incomplete", weights().substr(0, 123457));
  const size_t before = hub_->requests("GET", "/org/tiny/model.safetensors").size();
  ASSERT_TRUE(download().ok());
  const auto gets = hub_->requests("GET", "/org/tiny/model.safetensors");
  for (size_t i = before; i < gets.size(); ++i) EXPECT_GE(gets[i].range->first, 123457u);
  expect_whole_model();
}

TEST_F(Hub, WrongHashIsDeletedAndSaid) {
  start("", R"({"server": "storage", "path": "model", "flip": 200000})");
  const auto result = download();
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().kind, ErrorKind::kDataLoss);
  EXPECT_THAT(result.error().message,
              AllOf(HasSubstr("model.safetensors: the SHA-256"), HasSubstr("was deleted")));
  for (const auto& item : fs::directory_iterator(folder() + "/blobs")) {
    EXPECT_NE(item.path().filename().string().size(), 64u) << item.path();
    EXPECT_NE(item.path().extension(), ".incomplete");
  }
  EXPECT_FALSE(fs::exists(snapshot() + "/model.safetensors"));
  EXPECT_FALSE(cached_model(kModel, options_).ok());
  start();
  ASSERT_TRUE(download().ok());
  expect_whole_model();
}

TEST_F(Hub, TheTokenStaysAtTheHub) {
  start(R"("token": "hf_secret")");
  options_.token = "hf_secret";
  ASSERT_TRUE(download().ok());
  int at_storage = 0;
  for (const auto& request : hub_->requests()) {
    if (request.server == "hub") {
      EXPECT_EQ(request.authorization, "Bearer hf_secret");
    } else {
      EXPECT_EQ(request.authorization, "");
      EXPECT_EQ(request.if_range, "");
      ++at_storage;
    }
  }
  EXPECT_GT(at_storage, 0);
}

TEST_F(Hub, AMirrorMayKeepItsStorageOnTheSameHost) {
  start(R"("same_host": true)");
  const auto path = download();
  ASSERT_TRUE(path.ok()) << path.error().message;
  expect_whole_model();
  EXPECT_EQ(blob().size(), 64u);
  uint64_t sent = 0;
  for (const auto& get : hub_->requests("GET", "/storage/org/tiny/")) sent += get.sent;
  EXPECT_EQ(sent, weights().size());  // no range was answered with the whole file
}

TEST_F(Hub, RedirectsToOtherSchemesAreRefused) {
  start(R"("redirect": "file:///etc")");
  EXPECT_THAT(failure(), HasSubstr("only https and http"));
}

TEST_F(Hub, Refusals) {
  start(R"("token": "hf_secret")");
  const std::string anonymous = failure();
  EXPECT_THAT(anonymous, AllOf(HasSubstr("401"), HasSubstr("set HF_TOKEN")));
  options_.token = "hf_wrong";
  EXPECT_THAT(failure(), AllOf(HasSubstr("401"), HasSubstr("refused the token")));
  EXPECT_EQ(download().error().kind, ErrorKind::kPermission);
  options_.token = "";

  start(R"("gated": true)");
  EXPECT_THAT(failure(), AllOf(HasSubstr("403"), HasSubstr("accept its terms"),
                               HasSubstr(hub_->endpoint() + "/org/tiny")));
  start();
  EXPECT_THAT(failure({"org", "other"}), HasSubstr("there is no model org/other"));
  EXPECT_THAT(failure({"org", "tiny", "v9"}), HasSubstr("org/tiny has no revision \"v9\""));
  EXPECT_EQ(download({"org", "other"}).error().kind, ErrorKind::kNotFound);
  start("", R"({"server": "hub", "path": "config.json", "status": 404})");
  EXPECT_THAT(failure(), HasSubstr("404"));
}

TEST_F(Hub, RevisionsHaveTheirOwnRefs) {
  start(R"("revisions": ["refs/pr/3"])");
  ASSERT_TRUE(download({"org", "tiny", "refs/pr/3"}).ok());
  EXPECT_EQ(read_file(folder() + "/refs/refs/pr/3"), kCommit);
  EXPECT_TRUE(cached_model({"org", "tiny", "refs/pr/3"}, options_).ok());
  EXPECT_TRUE(cached_model({"org", "tiny", kCommit}, options_).ok());
  EXPECT_FALSE(cached_model(kModel, options_).ok());
}

TEST_F(Hub, Offline) {
  start();
  options_.offline = true;
  EXPECT_THAT(failure(), AllOf(HasSubstr("not in the cache"), HasSubstr("HF_HUB_OFFLINE")));
  options_.offline = false;
  ASSERT_TRUE(download().ok());
  options_.offline = true;
  const size_t before = hub_->requests().size();
  const auto hit = download();
  ASSERT_TRUE(hit.ok());
  EXPECT_EQ(*hit, snapshot());
  EXPECT_EQ(hub_->requests().size(), before);
  fs::remove(snapshot() + "/model.safetensors");
  EXPECT_THAT(failure(), HasSubstr("only partly in the cache: model.safetensors is missing"));
}

TEST_F(Hub, ResolvePrefersDirectoryThenCacheThenHub) {
  start();
  EXPECT_EQ(*resolve_model(files(), options_), files());
  const auto fetched = resolve_model("org/tiny", options_);
  ASSERT_TRUE(fetched.ok()) << fetched.error().message;
  const size_t before = hub_->requests().size();
  EXPECT_EQ(*resolve_model("org/tiny", options_), *fetched);
  EXPECT_EQ(hub_->requests().size(), before);
  EXPECT_EQ(resolve_model("./absent", options_).error().kind, ErrorKind::kNotFound);
  EXPECT_THAT(resolve_model(files() + "/config.json", options_).error().message,
              HasSubstr("is a file"));
  EXPECT_THAT(resolve_model("absent", options_).error().message, HasSubstr("ORG/NAME"));
}

TEST_F(Hub, DiskSpaceIsCheckedFirst) {
  start();
  options_.free_space = [](const std::string&) { return Result<uint64_t>(uint64_t{100000}); };
  const auto result = download();
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().kind, ErrorKind::kExhausted);
  EXPECT_THAT(result.error().message, HasSubstr("HF_HUB_CACHE"));
  EXPECT_TRUE(hub_->requests("GET", "model.safetensors").empty());
  // Bytes that are here already are not counted again.
  options_.free_space = [](const std::string&) { return Result<uint64_t>(uint64_t{1} << 40); };
  ASSERT_TRUE(download().ok());
}

TEST_F(Hub, TransientTroubleIsRetried) {
  start("", R"({"server": "hub", "path": "/api/", "status": 503, "times": 1},
              {"server": "hub", "method": "HEAD", "path": "config.json", "status": 429, "times": 2},
              {"server": "storage", "path": "model", "status": 403, "times": 2})");
  const auto path = download();
  ASSERT_TRUE(path.ok()) << path.error().message;
  expect_whole_model();
  EXPECT_THAT(notes_, HasSubstr("HTTP status 503"));
}

TEST_F(Hub, RetryAfterIsWaitedFor) {
  start("", R"({"server": "hub", "path": "/api/", "status": 429, "times": 1,
                "headers": {"Retry-After": "1"}},
              {"server": "storage", "path": "model", "status": 503, "times": 1,
                "headers": {"Retry-After": "1"}})");
  const auto begin = std::chrono::steady_clock::now();
  const auto path = download();
  ASSERT_TRUE(path.ok()) << path.error().message;
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2));
  EXPECT_THAT(notes_, HasSubstr("(HTTP 429); trying again in 1.0 s"));
}

TEST_F(Hub, ACacheWithoutTokenizerIsCompletedWhereTheHubIsThere) {
  start();
  ASSERT_TRUE(download().ok());
  fs::remove(snapshot() + "/tokenizer.json");
  ASSERT_TRUE(resolve_model("org/tiny", options_).ok());
  EXPECT_TRUE(fs::exists(snapshot() + "/tokenizer.json"));
  fs::remove(snapshot() + "/tokenizer.json");
  hub_.reset();  // its port is closed now: the weights can be used all the same
  options_.num_retries = 0;
  EXPECT_EQ(*resolve_model("org/tiny", options_), snapshot());
}

TEST_F(Hub, NoNetwork) {
  start();
  hub_.reset();  // its port is closed now
  const auto result = download();
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().kind, ErrorKind::kUnavailable);
  EXPECT_THAT(result.error().message, AllOf(HasSubstr("no answer from"), HasSubstr("4 attempts")));
}

TEST_F(Hub, AServerThatStandsStillIsGivenUp) {
  start("", R"({"server": "hub", "path": "/api/", "silent": 20})");
  options_.timeout_s = 1;
  options_.num_retries = 0;
  EXPECT_THAT(failure(), HasSubstr("no answer from"));
}

TEST_F(Hub, AServerWithoutRangesWorks) {
  start("", R"({"server": "storage", "path": "model", "ignore_range": true})");
  options_.num_connections = 2;
  const auto path = download();
  ASSERT_TRUE(path.ok()) << path.error().message;
  expect_whole_model();
}

TEST_F(Hub, AnotherProcessHasTheLock) {
  start();
  ASSERT_TRUE(download().ok());
  const std::string etag = blob();
  fs::remove_all(snapshot());
  fs::remove_all(folder() + "/blobs");
  // As huggingface_hub's filelock does it; the child says when it has the lock.
  const std::string lock = options_.cache_dir + "/.locks/models--org--tiny/" + etag + ".lock";
  ASSERT_TRUE(fs::exists(lock));
  const std::string script = "import fcntl,time;f=open('" + lock +
                             "','w');fcntl.flock(f,fcntl.LOCK_EX);open('" + dir_.file("held") +
                             "','w');time.sleep(1)";
  std::thread other([&] { EXPECT_EQ(system(("python3 -c \"" + script + "\"").c_str()), 0); });
  while (!fs::exists(dir_.file("held"))) std::this_thread::yield();
  EXPECT_TRUE(download().ok());
  other.join();
  EXPECT_THAT(notes_, HasSubstr("waiting for another process"));
  expect_whole_model();
}

TEST_F(Hub, TwoDownloadsAtOnceFetchEachByteOnce) {
  start("", R"({"server": "storage", "path": "model", "silent": 0.05})");
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([this] {
      const auto path = download_model(kModel, options_);
      EXPECT_TRUE(path.ok()) << path.error().message;
    });
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t sent = 0;
  for (const auto& get : hub_->requests("GET", "/org/tiny/model.safetensors")) sent += get.sent;
  EXPECT_EQ(sent, weights().size());
  expect_whole_model();
}

TEST_F(Hub, ATemplateForToolsComesInItsFolder) {
  const std::string name = "additional_chat_templates/tool_use.jinja";
  fs::create_directory(files() + "/additional_chat_templates");
  write_file(files() + "/" + name, "tools");
  start(R"("siblings": [")" + name + R"("])");
  ASSERT_TRUE(download().ok());
  EXPECT_EQ(read_file(snapshot() + "/" + name), "tools");
  EXPECT_TRUE(fs::is_symlink(snapshot() + "/" + name));
}

TEST_F(Hub, AHostileHubCanNotLeaveTheCache) {
  start(R"("siblings": ["../../../evil.json", "/tokenizer.json", "a/../config.json"])");
  EXPECT_TRUE(download().ok());
  EXPECT_TRUE(hub_->requests("", "evil").empty());
  fs::remove_all(options_.cache_dir);
  start(R"("etag": {"config.json": "../../../../evil"})");
  EXPECT_THAT(failure(), HasSubstr("no usable ETag"));
  start(R"("sha": "../../evil")");
  EXPECT_THAT(failure(), HasSubstr("is not a commit"));
  start(R"("etag": {"tokenizer.json": ""})");
  EXPECT_THAT(failure(), HasSubstr("no usable ETag"));
}

TEST_F(Hub, RepositoriesWithoutSafetensorsAreRefused) {
  fs::remove(files() + "/model.safetensors");
  start();
  const auto result = download();
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(result.error().message, HasSubstr("safetensors"));
}

}  // namespace
}  // namespace weft
