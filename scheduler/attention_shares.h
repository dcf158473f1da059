// How much of which document every server computes: what PlanDisaggregation begins with. Where in
// the document, the searches after it decide (scheduler/attention_search.h). Pure and
// deterministic.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/attention_cost.h"
#include "scheduler/attention_pool.h"

namespace evenkeel {

// What a server computes of a document, in seconds of a server of speed 1.
struct DocumentShare {
  int32_t server = 0;
  double seconds = 0;
};

// A document that is computed elsewhere than it lies, or by several.
struct SharedDocument {
  int32_t document = 0;
  // In the order of the queries. One a server, until ExchangeShares gives it several.
  std::vector<DocumentShare> shares;
};

// A small document that its owner computes.
struct KeptDocument {
  static constexpr int32_t kMoved = -1;  // in place of one that a search has given to a server
  int32_t document = 0;
  int32_t owner = 0;
  double seconds = 0;
};

struct SharedWork {
  // Those that several hold, or that are large, or do not stay with their owner.
  std::vector<SharedDocument> documents;
  std::vector<KeptDocument> kept;
  std::vector<double> load;  // [ranks] seconds of all that is left to a rank
  double mean = 0;           // of the loads, per speed
};

// Divides the documents so that each server's load per speed is within 1 + `tolerance` of the mean,
// either way, in as few shares as it can.
SharedWork ShareDocuments(const AttentionPool& pool, const AttentionCost& cost, double tolerance);

// Takes those out that are kMoved. Searches count on indices until they end.
void DropMoved(std::vector<KeptDocument>* kept);

}  // namespace evenkeel
