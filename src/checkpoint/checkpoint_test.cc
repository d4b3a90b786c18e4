#include "checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include <thread>

#include "base/thread_pool.h"
#include "checkpoint/safetensors_writer.h"
#include "checkpoint/test_files.h"

namespace weft {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::read_file;
using testing::TempDir;
using testing::write_file;
namespace fs = std::filesystem;

/// Writes a shard with one F32 tensor of `count` values first, first + 1, ... per name.
void write_shard(const std::string& path, const std::vector<std::string>& names, size_t count = 4) {
  std::vector<std::vector<float>> values;
  std::vector<TensorToWrite> tensors;
  for (size_t t = 0; t < names.size(); ++t) {
    values.emplace_back(count);
    for (size_t i = 0; i < count; ++i) values.back()[i] = static_cast<float>(t * 100 + i);
  }
  for (size_t t = 0; t < names.size(); ++t) {
    tensors.push_back({names[t],
                       DType::kF32,
                       {static_cast<int64_t>(count)},
                       std::as_bytes(std::span(values[t]))});
  }
  ASSERT_TRUE(write_safetensors(path, tensors).ok());
}

void write_index(const TempDir& dir, const std::vector<std::pair<std::string, std::string>>& map) {
  std::string text = R"({"metadata": {"total_size": 1}, "weight_map": {)";
  for (size_t i = 0; i < map.size(); ++i) {
    text += (i ? ", \"" : "\"") + map[i].first + "\": \"" + map[i].second + "\"";
  }
  write_file(dir.file("model.safetensors.index.json"), text + "}}");
}

std::string problem(const TempDir& dir) {
  const auto checkpoint = Checkpoint::open(dir.path());
  return checkpoint.ok() ? "accepted" : checkpoint.error().message;
}

TEST(Checkpoint, SingleFile) {
  const TempDir dir;
  write_shard(dir.file("model.safetensors"), {"b", "a"});
  const auto checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  EXPECT_THAT(checkpoint->names(), ElementsAre("a", "b"));
  EXPECT_EQ(checkpoint->total_bytes(), 32u);
  ASSERT_NE(checkpoint->find("a"), nullptr);
  EXPECT_EQ(checkpoint->find("c"), nullptr);
  std::vector<float> got(4);
  ASSERT_TRUE(checkpoint->read("a", std::as_writable_bytes(std::span(got))).ok());
  EXPECT_THAT(got, ElementsAre(100, 101, 102, 103));
  EXPECT_EQ(checkpoint->read("c", std::as_writable_bytes(std::span(got))).error().kind,
            ErrorKind::kNotFound);
}

TEST(Checkpoint, Sharded) {
  const TempDir dir;
  write_shard(dir.file("s-1.safetensors"), {"x", "y"});
  write_shard(dir.file("s-2.safetensors"), {"z"});
  write_index(dir, {{"x", "s-1.safetensors"}, {"y", "s-1.safetensors"}, {"z", "s-2.safetensors"}});
  const auto checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  EXPECT_THAT(checkpoint->names(), ElementsAre("x", "y", "z"));
  EXPECT_EQ(checkpoint->shards().size(), 2u);
  std::vector<float> got(2);
  ASSERT_TRUE(checkpoint->read_range("y", 8, std::as_writable_bytes(std::span(got))).ok());
  EXPECT_THAT(got, ElementsAre(102, 103));
}

TEST(Checkpoint, ParallelReadsGiveEveryByte) {
  const TempDir dir;
  const size_t count = (20 << 20) / 4;  // over two pieces
  write_shard(dir.file("model.safetensors"), {"big", "big2"}, count);
  const auto checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok());
  std::vector<float> big(count), big2(count);
  const std::vector<Checkpoint::ReadRequest> requests = {
      {"big", std::as_writable_bytes(std::span(big))},
      {"big2", std::as_writable_bytes(std::span(big2))}};
  ThreadPool pool(3);
  uint64_t last = 0;
  const auto progress = [&](uint64_t bytes) {
    EXPECT_GT(bytes, last);
    last = bytes;
  };
  const auto done = checkpoint->read_all(requests, pool, progress);
  ASSERT_TRUE(done.ok()) << done.error().message;
  EXPECT_EQ(last, count * 8);
  for (size_t i = 0; i < count; ++i) {
    ASSERT_EQ(big[i], static_cast<float>(i));
    ASSERT_EQ(big2[i], static_cast<float>(100 + i));
  }
  fs::resize_file(dir.file("model.safetensors"), count * 4);
  const auto shrunk = checkpoint->read_all(requests, pool, {});
  ASSERT_FALSE(shrunk.ok());
  EXPECT_EQ(shrunk.error().kind, ErrorKind::kDataLoss);
}

TEST(Checkpoint, ReadsFromManyThreads) {
  const TempDir dir;
  write_shard(dir.file("model.safetensors"), {"a", "b", "c"}, 1000);
  const auto checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const std::string name(1, static_cast<char>('a' + t % 3));
      for (int round = 0; round < 50; ++round) {
        std::vector<float> got(1000);
        ASSERT_TRUE(checkpoint->read(name, std::as_writable_bytes(std::span(got))).ok());
        ASSERT_EQ(got[999], static_cast<float>(t % 3 * 100 + 999));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Checkpoint, IndexAndShardsMustAgree) {
  const TempDir dir;
  EXPECT_THAT(problem(dir), HasSubstr("neither model.safetensors nor"));
  write_file(dir.file("pytorch_model.bin"), "x");
  EXPECT_THAT(problem(dir), HasSubstr("convert the model to safetensors"));

  write_shard(dir.file("s-1.safetensors"), {"x", "y"});
  write_index(dir, {{"x", "s-1.safetensors"}, {"z", "s-2.safetensors"}});
  EXPECT_THAT(problem(dir), HasSubstr("the shard s-2.safetensors, which"));
  write_index(dir, {{"x", "s-1.safetensors"}, {"gone", "s-1.safetensors"}});
  EXPECT_THAT(problem(dir), HasSubstr("s-1.safetensors lacks the tensor \"gone\""));
  write_shard(dir.file("s-2.safetensors"), {"z", "y"});
  write_index(dir, {{"x", "s-1.safetensors"}, {"z", "s-2.safetensors"}});
  EXPECT_THAT(problem(dir), HasSubstr("tensor \"y\" is in two shards"));
  write_file(dir.file("s-2.safetensors"), read_file(dir.file("s-1.safetensors")).substr(0, 90));
  EXPECT_THAT(problem(dir), HasSubstr("s-2.safetensors"));
}

// A07
TEST(CheckpointAttack, ShardNames) {
  const TempDir dir;
  write_shard(dir.file("s.safetensors"), {"x"});
  fs::create_directory(dir.file("sub.safetensors"));
  fs::create_directory(dir.file("d"));
  write_shard(dir.file("d/s.safetensors"), {"x"});
  for (const std::string name :
       {"../../x.safetensors", "../s.safetensors", "/etc/passwd", "d/s.safetensors", "", ".", "..",
        "s.bin", ".safetensors", "a\\u0000.safetensors", "s .safetensors"}) {
    write_index(dir, {{"x", name}});
    EXPECT_THAT(problem(dir), HasSubstr("must be a plain file name")) << name;
  }
  write_index(dir, {{"x", dir.file("s.safetensors")}});
  EXPECT_THAT(problem(dir), HasSubstr("must be a plain file name"));
  write_index(dir, {{"x", "sub.safetensors"}});
  EXPECT_THAT(problem(dir), HasSubstr("not a regular file"));
  ASSERT_EQ(mkfifo(dir.file("fifo.safetensors").c_str(), 0600), 0);
  write_index(dir, {{"x", "fifo.safetensors"}});
  EXPECT_THAT(problem(dir), HasSubstr("not a regular file"));
  write_index(dir, {{"x", "s.safetensors"}});
  EXPECT_EQ(problem(dir), "accepted");
}

TEST(CheckpointAttack, IndexContents) {
  const TempDir dir;
  for (const char* text : {"", "[]", "{}", R"({"weight_map": []})", R"({"weight_map": {}})",
                           R"({"weight_map": {"x": 1}})", R"({"weight_map": {"x": ["s"]}})",
                           R"({"weight_map": {"x": "s.safetensors", "x": "t.safetensors"}})"}) {
    write_file(dir.file("model.safetensors.index.json"), text);
    EXPECT_NE(problem(dir), "accepted") << text;
  }
}

TEST(CheckpointAttack, IndexThatIsNoFile) {
  const TempDir dir;
  const std::string index = dir.file("model.safetensors.index.json");
  fs::create_symlink("model.safetensors.index.json", index);  // a loop
  EXPECT_THAT(problem(dir), HasSubstr("symbolic link to"));
  fs::remove(index);
  fs::create_symlink("/dev/zero", index);
  EXPECT_THAT(problem(dir), HasSubstr("symbolic link to"));
  fs::remove(index);
  fs::create_directory(index);
  EXPECT_THAT(problem(dir), HasSubstr("not a regular file"));
  fs::remove(index);
  ASSERT_EQ(mkfifo(index.c_str(), 0600), 0);
  EXPECT_THAT(problem(dir), HasSubstr("not a regular file"));
}

TEST(CheckpointAttack, SymbolicLinks) {
  const TempDir cache;
  fs::create_directories(cache.file("blobs"));
  fs::create_directories(cache.file("snapshots/c0ffee"));
  const std::string link = cache.file("snapshots/c0ffee/model.safetensors");
  const auto open = [&](const std::string& target) {
    fs::remove(link);
    fs::create_symlink(target, link);
    const auto checkpoint = Checkpoint::open(cache.file("snapshots/c0ffee"));
    return checkpoint.ok() ? "accepted" : checkpoint.error().message;
  };
  write_shard(cache.file("blobs/abc123"), {"x"});
  EXPECT_EQ(open("../../blobs/abc123"), "accepted");
  EXPECT_THAT(open("../../blobs/absent"), HasSubstr("No such file"));
  fs::create_symlink("abc123", cache.file("blobs/link"));
  EXPECT_THAT(open("../../blobs/link"), HasSubstr("symbolic link itself"));
  for (const char* target : {"../../blobs/../blobs/abc123", "/etc/passwd", "model.safetensors",
                             "../../blobs/", "../../blobs/..", "/dev/zero"}) {
    EXPECT_THAT(open(target), HasSubstr("symbolic link to")) << target;
  }
  EXPECT_THAT(open(cache.file("blobs/abc123")), HasSubstr("symbolic link to"));
}

TEST(Checkpoint, DemoModelOpens) {
  const std::string dir = std::string(WEFT_SOURCE_DIR) + "/models/demo";
  if (!fs::exists(dir + "/config.json")) GTEST_SKIP() << "no demo model here";
  const auto checkpoint = Checkpoint::open(dir);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  EXPECT_EQ(checkpoint->shards().size(), 2u);
  EXPECT_EQ(checkpoint->total_bytes(), 27143440u);  // the index's metadata.total_size
}

}  // namespace
}  // namespace weft
