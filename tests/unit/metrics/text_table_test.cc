#include "runtime/metrics/text_table.h"

#include "gtest/gtest.h"

namespace evenkeel {
namespace {

using Align = TextColumn::Align;

TEST(TextTable, AlignsColumns) {
  TextTable table({{"purpose", Align::kLeft}, {"now"}, {"peak"}}, "Memory of rank 0");
  table.AddRow({"weights", "12.0 MiB", "12.0 MiB"});
  table.AddRow({"activations", "", "312.0 MiB"});
  table.AddRule();
  table.AddRow({"total", "12.0 MiB", "324.0 MiB"});
  EXPECT_EQ(table.Render(),
            "Memory of rank 0\n"
            "purpose           now       peak\n"
            "--------------------------------\n"
            "weights      12.0 MiB   12.0 MiB\n"
            "activations            312.0 MiB\n"
            "--------------------------------\n"
            "total        12.0 MiB  324.0 MiB\n");
}

TEST(TextTable, LeavesNoSpacesAtTheEndOfLines) {
  TextTable table({{"a", Align::kLeft}, {"long header", Align::kLeft}});
  table.AddRow({"x", "y"});
  table.AddRow({"", ""});
  EXPECT_EQ(table.Render(),
            "a  long header\n"
            "--------------\n"
            "x  y\n"
            "\n");
}

TEST(TextTable, CountsCodePointsAndKeepsCellsOnOneLine) {
  TextTable table({{"name", Align::kLeft}, {"n"}});
  table.AddRow({"\xC3\xA9t\xC3\xA9", "1"});
  table.AddRow({"two\nlines\x1b[2J", "2"});
  EXPECT_EQ(table.Render(),
            "name           n\n"
            "----------------\n"
            "\xC3\xA9t\xC3\xA9            1\n"
            "two lines [2J  2\n");
}

TEST(TextTable, HasAHeaderWithoutRows) {
  EXPECT_EQ(TextTable({{"only"}}).Render(), "only\n----\n");
}

TEST(TextTableDeathTest, RefusesRowsOfAnotherSize) {
  TextTable table({{"a"}, {"b"}});
  EXPECT_DEATH(table.AddRow({"1"}), "cells");
}

}  // namespace
}  // namespace evenkeel
