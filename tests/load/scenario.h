#pragma once

#include <string>
#include <utility>
#include <vector>

#include "tests/load/client.h"
#include "tests/load/server_process.h"

namespace weft::load {

struct Settings {
  std::string weft;   ///< the binary
  bool full = false;  ///< the counts of the acceptance points; else a short form
  uint64_t seed = 1;
  /// Of the servers of `drafts`: the model and --device, where they are not the usual ones.
  std::vector<std::string> engine_flags;
};

/// Milliseconds of delay that the short form allows: it runs where neighbours compile, and only
/// finds what is far off.
inline constexpr double kBusyMs = 500;

/// The verdicts of one scenario: a JSON line for each set of figures, "ok"/"FAILED" lines, counts.
class Report {
 public:
  explicit Report(std::string scenario) : scenario_(std::move(scenario)) {}
  using Figures = std::vector<std::pair<std::string, double>>;
  void figures(const std::string& what, const Figures& figures);
  void check(bool ok, const std::string& what);
  void check_equal(double got, double wanted, const std::string& what);
  void check_at_most(double got, double bound, const std::string& what);
  int passed() const { return passed_; }
  int failed() const { return failed_; }

 private:
  const std::string scenario_;
  int passed_ = 0, failed_ = 0;
};

void run_streams(const Settings& settings, Report& report);
void run_overload(const Settings& settings, Report& report);
void run_disconnects(const Settings& settings, Report& report);
void run_drain(const Settings& settings, Report& report);
void run_watchdog(const Settings& settings, Report& report);
void run_abuse(const Settings& settings, Report& report);
void run_attacks(const Settings& settings, Report& report);
void run_exactness(const Settings& settings, Report& report);
void run_drafts(const Settings& settings, Report& report);
void run_replicas(const Settings& settings, Report& report);
void run_tenants(const Settings& settings, Report& report);
void run_schemas(const Settings& settings, Report& report);
void run_prefixes(const Settings& settings, Report& report);

/// Tokens of a prompt, and how many of them were in the cache; -1 where the answer has none.
struct Usage {
  int64_t prompt = -1, cached = -1;
};
Usage usage_of(const Answer& answer);

/// An answer without what differs from call to call: its id, its time, what the cache had.
std::string without_identity(std::string body);

/// A streamed completion asked again and again: its bytes must stay the same, whatever else goes
/// on.
class Victim {
 public:
  Victim(Loop& loop, std::string request);
  /// The reference, alone: blocks. Then it goes on by itself until stop().
  void start();
  void stop();  ///< waits for the answer under way
  int num_answers() const { return num_answers_; }
  int num_different() const { return num_different_; }
  /// Seconds between frames: 99th percentile of all so far; alone: of the reference.
  double gap_p99() const;
  double gap_p99_alone() const { return gap_p99_alone_; }

 private:
  void next();

  Loop& loop_;
  const std::string request_;
  std::string reference_;
  std::shared_ptr<Connection> connection_;
  Clock::time_point last_frame_;
  std::vector<double> gaps_;
  double gap_p99_alone_ = 0;
  bool stopping_ = false;
  int num_answers_ = 0, num_different_ = 0;
};

}  // namespace weft::load
