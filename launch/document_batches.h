// Lengths of documents as batches of training see them: read from a file, prepared as the
// experiments with core attention disaggregation prepare them, packed into samples.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace evenkeel {

enum class LengthRecipe {
  kAsIs,
  kPretrain,  // long ones upsampled, 10,000 drawn, lengths scaled to the longest sample
  kProLong,   // long ones upsampled and first, some of them set to the longest sample
};

// Reads a JSON list of positive whole numbers.
absl::StatusOr<std::vector<int64_t>> ReadLengths(const std::string& file);

// Of the lists of DistCA's experiments (arXiv 2510.18121, section 6.1 and its scripts): of the
// documents below 64K tokens the first half is kept, longer ones are there four times. `context`:
// the length of the longest document. Deterministic in `seed`.
std::vector<int64_t> PrepareLengths(const std::vector<int64_t>& lengths, LengthRecipe recipe,
                                    int64_t context, int64_t seed);

// Cuts the documents, laid end to end, into samples of `context` tokens and these into batches:
// lengths of the documents of each batch, none across the end of a sample. Starts again at the
// first document where the list ends.
std::vector<std::vector<int64_t>> CutBatches(const std::vector<int64_t>& documents, int64_t context,
                                             int64_t samples_per_batch, int64_t batches);

}  // namespace evenkeel
