#include "launch/device_option.h"

#include <string>

namespace evenkeel {

void AddDeviceOption(CLI::App& command, Device* device) {
  const auto choose = [device](const std::string& name) {
    *device = name == "cuda" ? Device::kCuda : Device::kCpu;
  };
  command
      .add_option_function<std::string>("--device", choose,
                                        "cpu, or cuda for one NVIDIA GPU a rank")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->default_str("cpu");
}

void SetDevice(Device device, RankOptions* options) {
  options->device = device;
  options->dtype = device == Device::kCuda ? DType::kBF16 : DType::kF32;
}

}  // namespace evenkeel
