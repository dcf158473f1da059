// Short documents before dedicated attention servers. A share of the work says nothing of how many
// queries it has: what is left beside a long document may be most of the batch's queries for little
// work, and all of it for one server, which would need memory for them and be waited for while they
// travel. Pure and deterministic.
#pragma once

#include <vector>

#include "scheduler/attention_pool.h"
#include "scheduler/attention_shares.h"

namespace evenkeel {

// Gives documents of less than `most_seconds`, of owners that serve nothing themselves, to the
// servers with the fewest queries so far that have room. What is given is taken from room [ranks]
// and excess [documents], in seconds. Those with no share in `shared` are looked at.
void DealShortDocuments(const AttentionPool& pool, double most_seconds, std::vector<double>* excess,
                        std::vector<double>* room, std::vector<SharedDocument>* shared);

}  // namespace evenkeel
