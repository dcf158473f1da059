// A stable order by integers, made in time linear in their number: sorting a list of tasks by
// comparisons would cost more than all else that there is to plan.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace evenkeel {

class RadixOrder {
 public:
  struct Item {
    uint64_t key;
    int32_t index;
  };

  // Forgets what was added before.
  void Reserve(size_t count) {
    items_.clear();
    items_.reserve(count);
  }
  void Add(uint64_t key, int32_t index) { items_.push_back({key, index}); }
  const std::vector<Item>& items() const { return items_; }

  // By ascending key, equals in the order in which they were added. Least significant digit first,
  // from the lowest bit in which keys differ to the highest: rows are mostly multiples of tiles.
  const std::vector<Item>& Sort() {
    bool is_sorted = true;
    uint64_t differ = 0;
    for (size_t i = 1; i < items_.size(); ++i) {
      is_sorted = is_sorted && items_[i - 1].key <= items_[i].key;
      differ |= items_[i - 1].key ^ items_[i].key;
    }
    if (is_sorted) return items_;
    other_.resize(items_.size());
    for (int shift = std::countr_zero(differ); shift < 64 && differ >> shift != 0; shift += kBits) {
      if ((differ >> shift & (kDigits - 1)) == 0) continue;
      std::array<uint32_t, kDigits> ends = {};
      for (const Item& item : items_) ++ends[item.key >> shift & (kDigits - 1)];
      uint32_t begin = 0;
      for (uint32_t& end : ends) begin += std::exchange(end, begin);
      for (const Item& item : items_) other_[ends[item.key >> shift & (kDigits - 1)]++] = item;
      items_.swap(other_);
    }
    return items_;
  }

 private:
  static constexpr int kBits = 8;
  static constexpr uint64_t kDigits = uint64_t{1} << kBits;

  std::vector<Item> items_, other_;
};

}  // namespace evenkeel
