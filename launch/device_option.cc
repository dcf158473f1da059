#include "launch/device_option.h"

#include <map>
#include <string>

namespace evenkeel {

void AddDeviceOption(CLI::App& command, Device* device) {
  static const std::map<std::string, Device> kNames = {{"cpu", Device::kCpu},
                                                       {"cuda", Device::kCuda}};
  command.add_option("--device", *device, "cpu, or cuda for one NVIDIA GPU a rank")
      ->transform(CLI::CheckedTransformer(kNames))
      ->default_str("cpu");
}

void SetDevice(Device device, RankOptions* options) {
  options->device = device;
  options->dtype = device == Device::kCuda ? DType::kBF16 : DType::kF32;
}

}  // namespace evenkeel
