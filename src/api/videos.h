#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "media/video.h"
#include "sched/request.h"

namespace weft {

class Tokenizer;

/// Frames a second where a request says nothing: what Qwen's clients sample.
inline constexpr double kVideoFps = 2;

/// A video as a request names it.
struct VideoSource {
  std::string field;  ///< where it stands, for errors
  /// A URI a frame. A single data: URI may hold several, "data:video/jpeg;base64,FRAME,FRAME", or
  /// an animation.
  std::vector<std::string> frames;
  double fps = 0;  ///< of these frames; 0: not said
};

/// How a model takes videos, and what requests may bring.
struct VideoInputConfig {
  VideoProcessing processing;
  int32_t video_token = -1;  ///< stands for a video, and then for each of its tokens
  int32_t start_token = -1, end_token = -1;  ///< around it
  double tokens_per_second = 0;              ///< 0: each group of frames has its time as text
  int64_t max_videos = 4;                    ///< of one request
  int64_t max_frames = 768;                  ///< of one video
  int64_t max_tokens = 16384;                ///< of one video: larger frames are reduced
  int64_t max_pixels = int64_t{512} << 20;   ///< of all frames, before they are resized
};

/// A video as the engine takes it. The tower sees each group of frames alone (its attention ends at
/// the frame), so that each is an image of its own: in its budget, in its cache, in prefix keys.
struct PromptVideo {
  std::vector<std::shared_ptr<const ImagePatches>> groups;
  std::vector<double> times;  ///< of the groups, in seconds
  double group_seconds = 1;   ///< from one to the next
};

/// What stands for videos in a prompt whose template writes start, token, end for each.
struct VideoTexts {
  std::string start, token, end;
  std::vector<std::string> texts;  ///< one a video; empty: the template's own text stays
};

/// A text a video: "<1.5 seconds>", start, token, end for each group of frames (Qwen3VLProcessor).
std::vector<std::string> timed_texts(const std::vector<PromptVideo>& videos,
                                     const VideoTexts& marks);

/// What stands for these videos in a prompt: for models that read times their texts, else none. An
/// Error when the tokenizer lacks the marks.
Result<VideoTexts> texts_of_videos(const std::vector<PromptVideo>& videos,
                                   const VideoInputConfig& config, const Tokenizer& tokenizer);

/// The URIs of the frames of a data: URI that holds several; else the URI itself.
std::vector<std::string> split_frames(const std::string& uri, int64_t max_frames);

}  // namespace weft
