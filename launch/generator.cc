#include "launch/generator.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "models/decode.h"
#include "runtime/base/exit_code.h"
#include "runtime/base/status_macros.h"
#include "runtime/ops/gpu.h"

namespace evenkeel {

absl::Status Generate(const OpContext& context, Model& model, absl::Span<const int32_t> prompt,
                      const GenerationOptions& options, MemoryTracker& tracker,
                      const std::function<bool(int32_t)>& emit) {
  const ModelConfig& config = model.config();
  const int64_t capacity = static_cast<int64_t>(prompt.size()) + options.max_new_tokens;
  if (config.max_position_embeddings > 0 && capacity > config.max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt of ", prompt.size(), " tokens and ", options.max_new_tokens,
        " new ones do not fit the model's ", config.max_position_embeddings, " positions"));
  }
  EK_ASSIGN_OR_RETURN(DecodeCache cache, DecodeCache::Create(context, model, capacity, tracker));
  // Wide enough for the vector loads of a GPU, whatever the vocabulary.
  EK_ASSIGN_OR_RETURN(Tensor padded,
                      Tensor::Create(context.dtype, {1, (config.vocab_size + 7) / 8 * 8},
                                     MemoryPurpose::kCache, tracker, context.device()));
  const TensorView logits = padded.view().Columns(0, config.vocab_size);
  DecodeStep(context, model, prompt, cache, logits);
  std::vector<double> values(static_cast<size_t>(config.vocab_size));
  for (int64_t i = 0; i < options.max_new_tokens; ++i) {
    EK_RETURN_IF_ERROR(ReadDoubles(context, logits, absl::MakeSpan(values)));
    if (!std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); })) {
      return WithExitCode(absl::OutOfRangeError(absl::StrCat("logits at position ", cache.length(),
                                                             " are not finite")),
                          ExitCode::kDiverged);
    }
    const int32_t token =
        SampleToken(values, options.sampling, static_cast<uint64_t>(cache.length()));
    if (token == options.stop_token || !emit(token)) break;
    if (i + 1 < options.max_new_tokens) {
      DecodeStep(context, model, absl::MakeConstSpan(&token, 1), cache, logits);
    }
  }
  return absl::OkStatus();
}

}  // namespace evenkeel
