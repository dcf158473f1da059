// Tables for the terminal:
//
//   Memory of rank 0
//   purpose       now      peak
//   ---------------------------
//   weights  12.0 MiB  12.0 MiB
#pragma once

#include <string>
#include <vector>

namespace evenkeel {

struct TextColumn {
  enum class Align { kLeft, kRight };

  std::string header;
  Align align = Align::kRight;
};

class TextTable {
 public:
  // With an empty title the table starts with its header.
  explicit TextTable(std::vector<TextColumn> columns, std::string title = "");

  // Appends a row of as many cells as there are columns.
  void AddRow(std::vector<std::string> cells);

  // Appends a rule, as above a line of totals.
  void AddRule();

  // Returns the table, a newline after each line and no spaces at the ends of lines.
  std::string Render() const;

 private:
  std::string title_;
  std::vector<TextColumn> columns_;
  std::vector<std::vector<std::string>> rows_;  // a rule is a row without cells
};

}  // namespace evenkeel
