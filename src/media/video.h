#pragma once

#include <span>
#include <vector>

#include "media/processing.h"

namespace weft {

/// The size that the frames of a video are resized to: multiples of the frames' factor(), the
/// pixels of a frame or of all frames within the bounds. One frame counts as temporal_patch_size.
Result<ImageSize> video_size(ImageSize frame, int64_t num_frames, const VideoProcessing& video);

/// The same with bounds so low that no group of frames has more than `max_group_tokens`, nor the
/// video (nearly) more than `max_tokens`, where the size can be chosen.
VideoProcessing limit_tokens(VideoProcessing video, int64_t num_frames, int64_t max_group_tokens,
                             int64_t max_tokens);

/// Which of `total` frames are taken of a video of `fps` frames a second, ascending.
std::vector<int64_t> sample_frames(int64_t total, double fps, const VideoProcessing& video);

/// When each group of `depth` frames is shown, in seconds: the middle of its first and its last
/// one; the last frame stands for those that are missing. `indices` count frames of the video.
std::vector<double> group_times(std::span<const int64_t> indices, double fps, int depth);

}  // namespace weft
