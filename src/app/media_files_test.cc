#include "app/media_files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/temp_dir.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

class MediaFiles : public testing::Test {
 protected:
  MediaFiles() {
    fs::create_directories(allowed() + "/sub");
    fs::create_directories(root() + "/media2");
    write(allowed() + "/a b.png", "inside");
    write(allowed() + "/sub/c.png", "deeper");
    write(root() + "/secret", "outside");
    write(root() + "/media2/d.png", "beside");
    fs::create_symlink(root() + "/secret", allowed() + "/link");
    fs::create_symlink(allowed() + "/sub/c.png", allowed() + "/good");
    fs::create_directory_symlink(root(), allowed() + "/up");
    mkfifo((allowed() + "/pipe").c_str(), 0600);
  }

  std::string root() const { return directory_.path(); }
  std::string allowed() const { return root() + "/media"; }
  static void write(const std::string& path, const std::string& text) {
    std::ofstream(path) << text;
  }
  /// The file's bytes, or the error's text.
  std::string read(const std::string& url) const {
    const auto bytes = read_media_file(url, allowed(), 10);
    return bytes ? std::string(bytes->begin(), bytes->end()) : bytes.error().message;
  }

  TempDir directory_;
};

TEST_F(MediaFiles, WhatLiesBelowIsRead) {
  const std::string base = "file://" + allowed();
  EXPECT_EQ(read(base + "/a%20b.png"), "inside");
  EXPECT_EQ(read("file://localhost" + allowed() + "/a b.png"), "inside");
  EXPECT_EQ(read(base + "/sub/../sub/c.png"), "deeper");
  EXPECT_EQ(read(base + "/good"), "deeper");
}

TEST_F(MediaFiles, NothingElseIs) {
  const std::string base = "file://" + allowed();
  const std::string refused =
      "the file can't be read, or is not below the directory that is allowed";
  for (const char* rest : {"/link", "/up/secret", "/../secret", "/%2e%2e/secret", "/..%2Fsecret",
                           "/../media2/d.png", "2/d.png", "/missing", "/sub", "", "/", "/pipe",
                           "/a b.png/", "/../../../../../../../../../etc/passwd"}) {
    EXPECT_EQ(read(base + rest), refused) << rest;
  }
  EXPECT_EQ(read("file:///dev/zero"), refused);
  EXPECT_EQ(read("file:///proc/self/environ"), refused);
  const std::string bad = "the URL must be file:///PATH";
  for (const std::string& url :
       {std::string("file://"), std::string("file://host/etc/passwd"), base + "/a%20b.png?x",
        base + "/a%00", base + "/a%2", base + "/a%zz", "file:///" + std::string(9000, 'a')}) {
    EXPECT_EQ(read(url), bad) << url;
  }
  write(allowed() + "/large", "more than ten bytes");
  EXPECT_EQ(read(base + "/large"), "the image file is too large");
  EXPECT_FALSE(media_file_reader(""));
}

}  // namespace
}  // namespace weft
