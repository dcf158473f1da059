// Writes a model's logits, for comparison with other programs:
//
//   ek_dump_logits FOLDER TOKENS OUTPUT DTYPE
//
// FOLDER is a model in Hugging Face's layout; TOKENS a text file with the token ids of one document
// a line; OUTPUT a safetensors file that receives "logits" [T, V] of all documents, computed as one
// packed batch; DTYPE what to compute in, float32 or float64.
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "models/hugging_face.h"
#include "runtime/base/status_macros.h"

namespace evenkeel {
namespace {

absl::StatusOr<PackedBatch> ReadTokens(const std::string& path) {
  std::ifstream file(path);
  PackedBatch batch;
  for (std::string line; std::getline(file, line);) {
    std::istringstream numbers(line);
    std::vector<int32_t> tokens;
    for (int32_t token; numbers >> token;) tokens.push_back(token);
    batch.AppendPiece(tokens, std::vector<int32_t>(tokens.size(), kIgnoredTarget));
  }
  if (batch.tokens.empty()) return absl::NotFoundError(path + ": no tokens");
  return batch;
}

absl::Status Dump(const std::string& folder, const std::string& tokens, const std::string& output,
                  DType dtype) {
  MemoryTracker tracker;
  ThreadPool pool(2);
  EK_ASSIGN_OR_RETURN(Arena arena, Arena::Create(int64_t{1} << 36, tracker));
  const OpContext context{pool, arena, dtype};
  EK_ASSIGN_OR_RETURN(const PackedBatch batch, ReadTokens(tokens));
  EK_ASSIGN_OR_RETURN(Model model, LoadModel(context, folder, tracker));
  EK_RETURN_IF_ERROR(batch.Validate(model.config().vocab_size));
  EK_ASSIGN_OR_RETURN(Tensor logits,
                      Tensor::Create(dtype, {batch.num_tokens(), model.config().vocab_size},
                                     MemoryPurpose::kWorkspace, tracker));
  model.Logits(context, batch, logits.view());
  return WriteSafetensors(output, {{"logits", logits.view(), StoredTypeOf(dtype)}}).status();
}

}  // namespace
}  // namespace evenkeel

int main(int argc, char** argv) {
  const std::string dtype = argc == 5 ? argv[4] : "";
  if (dtype != "float32" && dtype != "float64") {
    std::fprintf(stderr, "usage: %s FOLDER TOKENS OUTPUT float32|float64\n", argv[0]);
    return 2;
  }
  const absl::Status status =
      evenkeel::Dump(argv[1], argv[2], argv[3],
                     dtype == "float64" ? evenkeel::DType::kF64 : evenkeel::DType::kF32);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
