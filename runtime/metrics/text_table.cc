#include "runtime/metrics/text_table.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/metrics/text_escape.h"

namespace evenkeel {
namespace {

constexpr int kGap = 2;  // spaces between columns

// A cell is one line of printable text, whatever the name in it.
std::string CellText(const std::string& text) {
  std::string cell = ValidUtf8(text);
  for (char& c : cell) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  return cell;
}

}  // namespace

TextTable::TextTable(std::vector<TextColumn> columns, std::string title)
    : title_(std::move(title)), columns_(std::move(columns)) {
  EK_CHECK(!columns_.empty());
  for (TextColumn& column : columns_) column.header = CellText(column.header);
}

void TextTable::AddRow(std::vector<std::string> cells) {
  EK_CHECK(cells.size() == columns_.size()) << cells.size() << " cells, " << columns_.size();
  for (std::string& cell : cells) cell = CellText(cell);
  rows_.push_back(std::move(cells));
}

void TextTable::AddRule() {
  rows_.emplace_back();
}

std::string TextTable::Render() const {
  std::vector<int64_t> widths;
  int64_t total = -kGap;
  for (size_t c = 0; c < columns_.size(); ++c) {
    int64_t width = CodePoints(columns_[c].header);
    for (const auto& row : rows_) {
      if (!row.empty()) width = std::max(width, CodePoints(row[c]));
    }
    widths.push_back(width);
    total += width + kGap;
  }
  const std::string rule = std::string(static_cast<size_t>(total), '-') + "\n";

  std::string table;
  const auto append_line = [&](const auto& cell_of) {
    std::string line;
    for (size_t c = 0; c < columns_.size(); ++c) {
      if (c > 0) line.append(kGap, ' ');
      const std::string& cell = cell_of(c);
      const auto padding = static_cast<size_t>(widths[c] - CodePoints(cell));
      if (columns_[c].align == TextColumn::Align::kRight) line.append(padding, ' ');
      line += cell;
      if (columns_[c].align == TextColumn::Align::kLeft) line.append(padding, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    table += line + "\n";
  };
  if (!title_.empty()) table += title_ + "\n";
  append_line([&](size_t c) -> const std::string& { return columns_[c].header; });
  table += rule;
  for (const auto& row : rows_) {
    if (row.empty()) {
      table += rule;
    } else {
      append_line([&](size_t c) -> const std::string& { return row[c]; });
    }
  }
  return table;
}

}  // namespace evenkeel
