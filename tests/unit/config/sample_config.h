// A small config struct that has every kind of field.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "runtime/config/config_fields.h"

namespace evenkeel {

enum class LayerKind { kSoftmax, kLightning };

struct SampleConfig {
  std::string name = "run";
  int64_t seed = 1;
  // model
  int64_t hidden_size = 256;
  int num_heads = 4;
  std::optional<int64_t> kv_heads;
  LayerKind kind = LayerKind::kSoftmax;
  std::vector<std::string> pattern = {"lightning", "softmax"};
  // model.rope
  double theta = 10000;
  std::optional<double> scale;
  // train
  double lr = 3e-4;
  int64_t steps = 100;
  bool resume = true;

  bool operator==(const SampleConfig&) const = default;
};

inline void DescribeSample(SampleConfig& c, ConfigFields& f) {
  f.String("name", &c.name, "of the run");
  f.Int("seed", &c.seed, "of every random draw", kNoMinimum, kNoMaximum);
  f.Section("model", "what is trained", [&](ConfigFields& m) {
    m.Int("hidden_size", &c.hidden_size, "width", 1, kNoMaximum);
    m.Int("num_heads", &c.num_heads, "query heads", 1, 1024);
    m.Int("kv_heads", &c.kv_heads, "key heads; as many as query heads if null", 1, 1024);
    m.Enum("kind", &c.kind, "of layer",
           {{"softmax", LayerKind::kSoftmax}, {"lightning", LayerKind::kLightning}});
    m.StringList("pattern", &c.pattern, "kinds of the layers");
    m.Section("rope", "rotary position", [&](ConfigFields& r) {
      r.Float("theta", &c.theta, "base", 1, std::numeric_limits<double>::infinity());
      r.Float("scale", &c.scale, "stretch", 0, 64);
    });
    if (c.hidden_size % c.num_heads != 0) m.Error("num_heads", "does not divide hidden_size");
  });
  f.Section("train", "how it is trained", [&](ConfigFields& t) {
    t.Float("lr", &c.lr, "peak learning rate", 0, 1);
    t.Int("steps", &c.steps, "optimizer steps", 1, kNoMaximum);
    t.Required("steps");
    t.Bool("resume", &c.resume, "from the last checkpoint");
  });
}

inline absl::Status ReadSample(const std::string& text, const std::vector<std::string>& overrides,
                               SampleConfig* config) {
  return ReadConfigFromText(text, "x.yaml", overrides,
                            [&](ConfigFields& f) { DescribeSample(*config, f); });
}

}  // namespace evenkeel
