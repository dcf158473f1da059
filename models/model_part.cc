#include "models/model_part.h"

#include "runtime/base/check.h"

namespace evenkeel {

ModelPart WholeModel(const ModelConfig& config) {
  ModelPart part;
  part.chunks.push_back({0, config.num_layers});
  return part;
}

Slice QueryHeads(int64_t num_heads, const ModelPart& part) {
  EK_CHECK(num_heads % part.tp == 0) << num_heads << " heads on " << part.tp << " ranks";
  return SliceOf(num_heads, part.tp, part.tp_rank);
}

Slice KeyValueHeads(int64_t num_kv_heads, const ModelPart& part) {
  if (num_kv_heads >= part.tp) {
    EK_CHECK(num_kv_heads % part.tp == 0) << num_kv_heads << " heads on " << part.tp << " ranks";
    return SliceOf(num_kv_heads, part.tp, part.tp_rank);
  }
  EK_CHECK(part.tp % num_kv_heads == 0) << num_kv_heads << " heads on " << part.tp << " ranks";
  const int64_t head = part.tp_rank / (part.tp / num_kv_heads);
  return {head, head + 1};
}

}  // namespace evenkeel
