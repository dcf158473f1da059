// When each action of a pipeline schedule runs, given what stages and messages cost: how long a
// step takes and how much of it ranks wait. Pure; prints as text and draws as SVG.
#pragma once

#include <string>
#include <vector>

#include "parallel/pipeline_schedule.h"

namespace evenkeel {

// Seconds, none negative. Stages are numbered through the model: [num_ranks * num_chunks].
struct StageCosts {
  std::vector<double> forward;
  std::vector<double> backward;
  double message = 0;  // from a stage to one on another rank; no rank is busy with it
};

struct TimedAction {
  PipelineAction action;
  double start = 0;  // seconds
  double end = 0;
};

struct Timetable {
  int num_chunks = 1;
  std::vector<std::vector<TimedAction>> actions;  // by rank, in order of execution
  double makespan = 0;                            // seconds until the last action ends
  std::vector<double> busy;                       // seconds, by rank
  std::vector<double> idle_share;                 // by rank: 1 - busy / makespan, the bubble
  double total_idle_share = 0;                    // of all ranks together
};

// Runs the schedule, which passes CheckSchedule: every action starts as soon as its rank is free
// and what it needs has arrived.
Timetable SimulateSchedule(const PipelineSchedule& schedule, const StageCosts& costs);

// Returns a text picture of `width` columns, 60 at least: a line a rank with its idle share, and
// the makespan below. A column shows what runs in its middle: a forward pass as the last digit of
// its micro-batch, a backward pass as the letter of that digit, a for 0 to j for 9, '.' is idle.
std::string RenderTimetable(const Timetable& timetable, int width);

// Returns an SVG document with a lane a rank. Later chunks are lighter.
std::string DrawTimetable(const Timetable& timetable);

}  // namespace evenkeel
