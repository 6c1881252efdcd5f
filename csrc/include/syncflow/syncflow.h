/* libsyncflow: sentences to video with sound, from C and C++.
 *
 *     syncflow_engine_params engine_params;
 *     syncflow_engine_params_init(&engine_params, sizeof engine_params);
 *     engine_params.package = "path/to/package";
 *     syncflow_engine* engine = NULL;
 *     if (syncflow_engine_open(&engine_params, &engine) != SYNCFLOW_OK) puts(syncflow_last_error());
 *
 *     syncflow_request_params params;
 *     syncflow_request_params_init(&params, sizeof params);
 *     params.prompt = "a large red rubber ball bounces on a wooden floor";
 *     syncflow_request* request = NULL;
 *     syncflow_request_submit(engine, &params, &request);
 *     if (syncflow_request_wait(request, -1) == SYNCFLOW_OK) {
 *         syncflow_clip clip = {.struct_size = sizeof clip};
 *         syncflow_request_clip(request, 0, &clip);
 *         syncflow_clip_write(&clip, "clip.mp4");
 *     }
 *     syncflow_request_close(request);
 *     syncflow_engine_close(engine);
 *
 * Conventions
 *
 * - Every function that can fail returns a status; syncflow_last_error() is the sentence that belongs to it.
 * - A handle is a number, not an address: a null handle, one that was closed and one of another kind are each answered with
 *   SYNCFLOW_INVALID_HANDLE.
 * - Every struct begins with struct_size. Params are set up by their _init function; a struct that a function fills needs
 *   struct_size alone. So a program runs with a later library without being compiled again.
 * - Strings are UTF-8 and end with a zero byte. What is passed in is copied before the function returns.
 * - All functions may be called from any thread at any time, unless their comment says otherwise.
 * - No C++ exception leaves the library. */
#ifndef SYNCFLOW_H
#define SYNCFLOW_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(SYNCFLOW_BUILDING_SHARED)
#define SYNCFLOW_API __declspec(dllexport)
#elif defined(__GNUC__)
#define SYNCFLOW_API __attribute__((visibility("default")))
#else
#define SYNCFLOW_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Status and messages ---- */

typedef int32_t syncflow_status;
enum {
    SYNCFLOW_OK = 0,
    SYNCFLOW_INVALID_ARGUMENT = 1,  /* the sentence says what is allowed */
    SYNCFLOW_INVALID_HANDLE = 2,    /* null, closed, or of another kind */
    SYNCFLOW_NOT_FOUND = 3,         /* a file or folder is missing */
    SYNCFLOW_CORRUPT = 4,           /* a package or media file is damaged, incomplete or changed */
    SYNCFLOW_UNSUPPORTED = 5,       /* what this build or this model cannot do */
    SYNCFLOW_OUT_OF_MEMORY = 6,
    SYNCFLOW_QUEUE_FULL = 7,        /* nothing was taken; a later attempt may succeed */
    SYNCFLOW_CANCELLED = 8,         /* by syncflow_request_cancel or a callback */
    SYNCFLOW_DEADLINE_EXCEEDED = 9, /* the request's timeout_ms passed before its last step was done */
    SYNCFLOW_ENGINE_CLOSED = 10,    /* the engine was closed before the request was done */
    SYNCFLOW_NOT_READY = 11,        /* the request is not finished yet */
    SYNCFLOW_IO_ERROR = 12,         /* a file cannot be read or written */
    SYNCFLOW_INTERNAL = 13          /* a fault of the library or of a back end */
};

/* "SYNCFLOW_OK", ...; never null. */
SYNCFLOW_API const char* syncflow_status_name(syncflow_status status);

/* The sentence of the last call in this thread that returned another status than SYNCFLOW_OK; empty if there was none. Valid until
 * the next call of this thread. */
SYNCFLOW_API const char* syncflow_last_error(void);

/* "0.1.0"; the commit that was built, or "unknown"; the back ends and file formats of this build. */
SYNCFLOW_API const char* syncflow_version(void);
SYNCFLOW_API const char* syncflow_commit(void);
SYNCFLOW_API const char* syncflow_build_info(void);

enum { SYNCFLOW_LOG_ERROR = 0, SYNCFLOW_LOG_WARNING = 1, SYNCFLOW_LOG_INFO = 2 };
typedef void (*syncflow_log_callback)(int32_t level, const char* message, void* user_data);

/* Messages up to `level` go to `callback`, from any thread, one at a time; null for none, the default. After the call the
 * callback that was set before is not running any more. SYNCFLOW_INVALID_ARGUMENT from within the callback itself. */
SYNCFLOW_API syncflow_status syncflow_set_log(syncflow_log_callback callback, void* user_data, int32_t level);

/* ---- Clips ---- */

/* A video with its sound; either may be empty. A view: it owns nothing. */
typedef struct syncflow_clip {
    uint32_t struct_size;
    int32_t sample_rate;
    double fps;
    const uint8_t* frames; /* (num_frames, height, width, 3), RGB */
    int64_t num_frames, height, width;
    const float* waveform; /* mono, -1 to 1 */
    int64_t num_samples;
    const char* provenance; /* how the clip was made, as a JSON object; null: unknown */
    const float* latents;   /* (channels, latent_frames, latent_height, latent_width) of the video; null: unknown */
    int64_t num_latents, latent_frames, latent_height, latent_width;
} syncflow_clip;

/* Writes a file beside its destination and renames it, so that no half of a file is ever seen. The name says how: .wav (16 bit),
 * .y4m (video alone, 4:4:4), .rgb (raw frames), _%05d.ppm (a file for each frame); with FFmpeg .mp4 (H.264 with AAC, the provenance
 * in the comment). */
SYNCFLOW_API syncflow_status syncflow_clip_write(const syncflow_clip* clip, const char* path);

typedef struct syncflow_media syncflow_media;

/* How a file is read. 0 keeps what the file has. */
typedef struct syncflow_media_params {
    uint32_t struct_size;
    int32_t width, height;   /* pixels; cut around the centre to this shape and resized */
    int32_t sample_rate;     /* 0: 48000 */
    double fps;              /* frame k is what the video shows at k / fps */
    double start, seconds;   /* the part of the file; 0 seconds: to its end */
} syncflow_media_params;

SYNCFLOW_API syncflow_status syncflow_media_params_init(syncflow_media_params* params, size_t struct_size);

/* Reads a video file with its sound mixed to mono, or a sound file; needs FFmpeg (SYNCFLOW_UNSUPPORTED without it). */
SYNCFLOW_API syncflow_status syncflow_media_read(const char* path, const syncflow_media_params* params, syncflow_media** media);

/* The clip of a file; it and its pointers are valid until the media are closed. */
SYNCFLOW_API syncflow_status syncflow_media_clip(syncflow_media* media, syncflow_clip* clip);
SYNCFLOW_API syncflow_status syncflow_media_close(syncflow_media* media);

/* ---- Engines ---- */

typedef struct syncflow_engine syncflow_engine;
typedef struct syncflow_request syncflow_request;

typedef struct syncflow_engine_params {
    uint32_t struct_size;
    int32_t threads;       /* that compute; 0: one for each core that this process may use */
    const char* package;   /* the folder of a model */
    const char* backend;   /* null: "native" */
    int32_t max_running;   /* requests that are stepped together; default 4 */
    int32_t max_queued;    /* requests that wait; one more is SYNCFLOW_QUEUE_FULL; default 256 */
    double ageing;         /* seconds of waiting that count as much as one priority; default 10 */
    int32_t host_steps;    /* 0: the engine steps in a thread of its own; 1: the program calls syncflow_engine_step */
    int32_t skip_checksums; /* 1: files are not compared with the manifest's checksums */
} syncflow_engine_params;

SYNCFLOW_API syncflow_status syncflow_engine_params_init(syncflow_engine_params* params, size_t struct_size);

/* Reads a model; on failure `*engine` is null. */
SYNCFLOW_API syncflow_status syncflow_engine_open(const syncflow_engine_params* params, syncflow_engine** engine);

/* Ends all requests of the engine with SYNCFLOW_ENGINE_CLOSED, after at most one step, and returns when no callback runs any
 * more. Handles of its requests stay valid. SYNCFLOW_INVALID_ARGUMENT from within a callback of the engine. */
SYNCFLOW_API syncflow_status syncflow_engine_close(syncflow_engine* engine);

/* What a model is, and what it makes unless a request says otherwise. */
typedef struct syncflow_model_info {
    uint32_t struct_size;
    int32_t sample_rate;
    char name[64], hash[72], backend[32], bridge[32];
    double seconds, max_seconds, fps;
    int32_t width, height, size_multiple, max_side; /* pixels */
    int32_t steps, max_steps, max_takes, text_tokens;
    int32_t audio_reads_video, video_reads_audio, audio_text; /* 0 or 1 */
    int32_t latent_channels;
    double guidance, shift, video_lead, sync_guidance, sync_cfg_audio, sync_cfg_video;
    int64_t parameters, weight_bytes;
} syncflow_model_info;

SYNCFLOW_API syncflow_status syncflow_engine_info(syncflow_engine* engine, syncflow_model_info* info);

/* Requests since the engine was opened, and those in it now. */
typedef struct syncflow_engine_stats {
    uint32_t struct_size;
    int32_t queued, running;
    int32_t reserved;
    int64_t submitted, completed, failed, cancelled, expired, steps;
} syncflow_engine_stats;

SYNCFLOW_API syncflow_status syncflow_engine_get_stats(syncflow_engine* engine, syncflow_engine_stats* stats);

/* In an engine with host_steps: lets requests join, does one step of one batch, and calls the callbacks, in this thread. `unfinished`
 * (may be null) is how many requests are left. Calls from several threads wait for each other. */
SYNCFLOW_API syncflow_status syncflow_engine_step(syncflow_engine* engine, int64_t* unfinished);

/* ---- Requests ---- */

enum { SYNCFLOW_QUEUED = 0, SYNCFLOW_RUNNING = 1, SYNCFLOW_DECODING = 2, SYNCFLOW_FINISHED = 3 };

typedef struct syncflow_progress {
    uint32_t struct_size;
    int32_t state;
    syncflow_status status; /* once it is finished */
    int32_t reserved;
    int64_t step, num_steps; /* 0 of 0 until the request runs */
    double elapsed;          /* seconds since it was submitted, until it finished */
} syncflow_progress;

/* Where a request is after a step. Normalised latents, and the frames that the video is expected to end with. */
typedef struct syncflow_preview {
    uint32_t struct_size;
    int32_t reserved;
    int64_t step, num_steps;
    const float* video; /* (channels, latent_frames, latent_height, latent_width) */
    int64_t channels, latent_frames, latent_height, latent_width;
    const float* audio; /* (audio_tokens, audio_channels) of the first take */
    int64_t audio_tokens, audio_channels;
    double video_time, audio_time; /* flow times: 0 is noise, 1 is data */
    const uint8_t* frames;         /* (num_frames, height, width, 3); null without preview_frames */
    int64_t num_frames, height, width;
} syncflow_preview;

/* Callbacks run in the thread that steps the engine, and hold it up as long as they take; what they point to is valid until they
 * return. Progress and preview stop the request when they return another value than 0. The last callback of a request that was
 * accepted is always one call of `finished`; with another value than 0 it releases the clips. They may call every function but
 * syncflow_engine_close and syncflow_engine_step of their engine and syncflow_request_wait. `request` may be closed in `finished`. */
typedef int32_t (*syncflow_progress_callback)(syncflow_request* request, const syncflow_progress* progress, void* user_data);
typedef int32_t (*syncflow_preview_callback)(syncflow_request* request, const syncflow_preview* preview, void* user_data);
typedef int32_t (*syncflow_finished_callback)(syncflow_request* request, syncflow_status status, const char* message, void* user_data);

/* Stands for the model's default in a field of type double; in other fields 0 does. */
#define SYNCFLOW_DEFAULT (-1.7976931348623157e308)

/* One clip to make. docs/cpp.md says what each setting does, docs/python.md in detail. */
typedef struct syncflow_request_params {
    uint32_t struct_size;
    int32_t sound_only;          /* 1: a sound without a video */
    const char* prompt;
    const char* negative_prompt; /* null: none */
    uint64_t seed, audio_seed;
    int32_t has_audio_seed;      /* 0: the first take of the sound has `seed` */
    int32_t takes;               /* sounds for the one video */
    int32_t steps, branch_interval;
    int32_t width, height;       /* pixels */
    double seconds, guidance, shift, video_lead, strength;
    double sync_guidance, sync_cfg_audio, sync_cfg_video;
    double guidance_from, guidance_until, guidance_rescale;
    const syncflow_clip* video;     /* at most one of video, image, extend, audio */
    const syncflow_clip* image;
    const syncflow_clip* extend;
    const syncflow_clip* audio;
    const syncflow_clip* reference; /* a sound whose style is wanted */
    int32_t priority;            /* higher goes first */
    int32_t preview_interval;    /* steps between two previews; 0: none */
    int32_t preview_frames;      /* 1: previews have frames, which takes a run of the decoder */
    int32_t reserved;
    int64_t timeout_ms;          /* from now until the last step; 0: none */
    syncflow_progress_callback on_progress;
    syncflow_preview_callback on_preview;
    syncflow_finished_callback on_finished;
    void* user_data;
} syncflow_request_params;

SYNCFLOW_API syncflow_status syncflow_request_params_init(syncflow_request_params* params, size_t struct_size);

/* Queues a request and returns at once. SYNCFLOW_QUEUE_FULL is back-pressure: nothing was taken. Mistakes that only the model can find
 * end the request with SYNCFLOW_INVALID_ARGUMENT. On failure `*request` is null and no callback is called. */
SYNCFLOW_API syncflow_status syncflow_request_submit(syncflow_engine* engine, const syncflow_request_params* params, syncflow_request** request);

/* The status that the request ends with, or SYNCFLOW_NOT_READY after `timeout_ms` (negative: as long as it takes). In an engine with
 * host_steps the call steps the engine. SYNCFLOW_INVALID_ARGUMENT from within a callback of the engine. */
SYNCFLOW_API syncflow_status syncflow_request_wait(syncflow_request* request, int64_t timeout_ms);

/* Ends a request with SYNCFLOW_CANCELLED, after at most the step that runs; no effect on one that is finished. */
SYNCFLOW_API syncflow_status syncflow_request_cancel(syncflow_request* request);

SYNCFLOW_API syncflow_status syncflow_request_get_progress(syncflow_request* request, syncflow_progress* progress);

/* A clip of a finished request; take 0 is the first. Its pointers are valid until the request is closed, by any thread. */
SYNCFLOW_API syncflow_status syncflow_request_clip(syncflow_request* request, int64_t take, syncflow_clip* clip);

/* Releases the handle and the clips. A request that is not finished is cancelled; its callbacks still run. */
SYNCFLOW_API syncflow_status syncflow_request_close(syncflow_request* request);

#ifdef __cplusplus
}
#endif

#endif
