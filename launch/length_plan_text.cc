// LengthPlanText: the plan for people to read.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/length_plan.h"
#include "runtime/metrics/human_format.h"
#include "runtime/metrics/text_table.h"
#include "runtime/tensor/memory_tracker.h"

namespace evenkeel {
namespace {

std::string Ratio(double value) {
  return std::isfinite(value) ? absl::StrFormat("%.3f", value) : "idle";
}

std::string BalanceText(const LengthPlanReport& report) {
  TextTable table({{"core attention", TextColumn::Align::kLeft},
                   {"FLOPs a server"},
                   {"heaviest / mean"},
                   {"mean / lightest"},
                   {"tasks"}},
                  "One layer, forward");
  const auto add = [&](const char* name, const DisaggregationPlan& plan) {
    const double mean = std::accumulate(plan.load.begin(), plan.load.end(), 0.0) /
                        static_cast<double>(plan.load.size());
    table.AddRow({name, FormatCount(mean), Ratio(LengthPlanReport::HeaviestToMean(plan)),
                  Ratio(LengthPlanReport::MeanToLightest(plan)), absl::StrCat(plan.tasks.size())});
  };
  add("where the tokens are", report.before);
  add("disaggregated", report.after);
  return table.Render();
}

std::string BytesText(const LengthPlanReport& report) {
  TextTable table({{"bytes of a layer", TextColumn::Align::kLeft},
                   {"most sent"},
                   {"mean"},
                   {"most received"},
                   {"mean"}},
                  "To and from other servers, bf16 (statistics and gradients of keys and values "
                  "float32)");
  const auto add = [&](const char* name, const std::vector<int64_t>& send,
                       const std::vector<int64_t>& recv) {
    std::vector<std::string> cells = {name};
    for (const auto* side : {&send, &recv}) {
      cells.push_back(FormatBytes(*std::max_element(side->begin(), side->end())));
      cells.push_back(FormatBytes(std::accumulate(side->begin(), side->end(), int64_t{0}) /
                                  static_cast<int64_t>(side->size())));
    }
    table.AddRow(std::move(cells));
  };
  add("queries, keys and values", report.after.send_bytes, report.after.recv_bytes);
  add("and results back", report.forward.send, report.forward.recv);
  add("and the backward pass", report.both.send, report.both.recv);
  return table.Render();
}

}  // namespace

std::string LengthPlanText(const LengthPlanReport& report) {
  const LengthPlanOptions& options = report.options;
  return absl::StrCat(
      absl::StrFormat(
          "%s: %d documents over %d servers of %d tokens; %d query and %d key/value heads "
          "of size %d a server\n\n",
          options.lengths_file, report.pool.documents.size(), options.servers,
          options.tokens_per_server, report.num_heads, report.num_kv_heads, report.qk_size),
      BalanceText(report), "\n", BytesText(report), "\n",
      absl::StrFormat("%d messages in %d rounds; planned in %s ms, tolerance %g.\n",
                      report.num_links, report.num_rounds,
                      absl::StrFormat("%.3f", report.planning_ms), options.tolerance));
}

}  // namespace evenkeel
