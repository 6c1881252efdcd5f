"""The ablations of SyncFlow, Syncphony and Harmony, and two of this project: what is varied, and what the papers found.

The most expensive come last among those that a paper has a figure for. Signs are those of the papers' own measures of
synchrony: ImageBind score of audio and video (SyncFlow), CycleSync (Syncphony), Sync-C of speech (Harmony).
"""

from __future__ import annotations

from .ablation import LOWER, Ablation, Score, Training, Variant

IMPACT = Score("impact_f1", "impact F1")
V2A = Score("v2a_onset_f1", "video-to-audio onset F1")
A2V = Score("a2v_impact_f1", "audio-to-video impact F1")
COLOR = Score("color_accuracy", "colour as in the prompt", compared=False)
AUDIO_LOSS = Score("loss_audio_driven", "loss of the audio given clean video", LOWER)
UNCOMPARED_AUDIO_LOSS = Score(AUDIO_LOSS.name, AUDIO_LOSS.label, LOWER, compared=False)
VIDEO_LOSS = Score("loss_video_driven", "loss of the video given clean audio", LOWER, compared=False)
JOINT_VIDEO_LOSS = Score("loss_video", "loss of the video", LOWER, compared=False)
# What the audio reads the video through. A short run must teach it to read, and not also what a sound is.
READS_VIDEO = ("adaptors.", "cross_attn.")

ABLATIONS = (
    Ablation(
        "audio-sync-guidance",
        "Does Audio Sync Guidance sharpen the video of a given sound, and how strong should it be?",
        "Syncphony, ablation study",
        (
            Variant("w = 0", {"sync_guidance": 0.0}),
            Variant("w = 1", {"sync_guidance": 1.0}),
            Variant("w = 2", {"sync_guidance": 2.0}, sign=1, reported="CycleSync 15.31 to 16.48"),
            Variant("w = 4", {"sync_guidance": 4.0}, sign=1, reported="CycleSync 15.31 to 16.26"),
        ),
        (A2V,),
        ("a2v",),
        model="syncphony-tiny",
    ),
    Ablation(
        "motion-aware-loss",
        "Does weighing errors by the motion of the clean latents help the video follow the sound?",
        "Syncphony, ablation study",
        (
            Variant("with", train={"motion_weight": 1.0}),
            Variant(
                "without",
                train={"motion_weight": 0.0},
                sign=-1,
                reported="CycleSync 16.48, or 15.31 without guidance, to 15.18",
            ),
        ),
        (A2V, VIDEO_LOSS),
        ("a2v",),
        training=Training("syncphony-tiny", "sync"),
    ),
    Ablation(
        "adaptor",
        "Does the audio need the modality adaptor, and the video at all?",
        "SyncFlow, Table 4 and Figure 6",
        (
            Variant("adaptor"),
            Variant("without adaptor", ddit={"adaptor_tokens": "none"}, sign=-1, reported="lower IB, higher loss"),
            Variant(
                "audio alone",
                {"sync_guidance": -1.0},  # the branch without bridge, alone
                {"audio_text": True},
                {"bridge_dropout": 1.0},
                sign=-1,
                reported="lower IB, better CLAP and KL",
            ),
        ),
        (V2A, AUDIO_LOSS),
        ("v2a",),
        training=Training("syncflow-tiny", "audio", {"clean_video": 0.75, "independent": 0.25}, READS_VIDEO),
    ),
    Ablation(
        "joint-fine-tuning",
        "Does training both towers further beat training the audio tower alone?",
        "SyncFlow, Table 1 (SyncFlow-VGG-AV-FT)",
        (
            Variant("video frozen", train={"stage": "audio"}),
            Variant("both towers", train={"stage": "joint"}, sign=1, reported="higher IB of audio and video"),
        ),
        (IMPACT, V2A, COLOR),
        ("prompts", "v2a"),
        training=Training("syncflow-tiny", "joint"),
    ),
    Ablation(
        "cross-task-synergy",
        "Do the two driven terms help both directions of a model whose towers read each other?",
        "Harmony, ablation of speech",
        (
            Variant("without", train={"synergy_video": 0.0, "synergy_audio": 0.0}),
            Variant("with", sign=1, reported="Sync-C 4.80 to 5.09"),
        ),
        (V2A, A2V, UNCOMPARED_AUDIO_LOSS, VIDEO_LOSS),
        ("v2a", "a2v"),
        training=Training("harmony-tiny", "joint"),
        request={"sync_cfg_audio": 1.0, "sync_cfg_video": 1.0},
    ),
    Ablation(
        "sync-cfg",
        "Does moving away from the sound of a still picture, and from the video of silence, sharpen synchrony?",
        "Harmony, ablation of speech",
        (
            Variant("off", {"sync_cfg_audio": 1.0, "sync_cfg_video": 1.0}),
            Variant("audio, 2", {"sync_cfg_audio": 2.0, "sync_cfg_video": 1.0}),
            Variant("video, 3", {"sync_cfg_audio": 1.0, "sync_cfg_video": 3.0}),
            Variant("both", {"sync_cfg_audio": 2.0, "sync_cfg_video": 3.0}, sign=1, reported="Sync-C 5.09 to 6.51"),
        ),
        (IMPACT, V2A, A2V),
        ("prompts", "v2a", "a2v"),
        model="harmony-tiny",
    ),
    Ablation(
        "optimal-transport",
        "Does pairing noise with data by optimal transport help where steps are few?",
        "Tong et al. 2024; SyncFlow uses it without an ablation",
        (
            Variant("paired", train={"optimal_transport": True}),
            Variant("independent", train={"optimal_transport": False}),
        ),
        (IMPACT, V2A, JOINT_VIDEO_LOSS),
        ("prompts", "v2a"),
        training=Training("syncflow-tiny", "joint"),
        request={"steps": 4},
    ),
    Ablation(
        "guidance",
        "How strong should classifier-free guidance be?",
        "SyncFlow, Figure 5",
        (
            Variant("w = 1", {"guidance": 1.0}),
            Variant("w = 2", {"guidance": 2.0}),
            Variant("w = 4", {"guidance": 4.0}),
            Variant("w = 6", {"guidance": 6.0}, sign=1, reported="the best average IB"),
        ),
        (IMPACT, COLOR),
        ("prompts",),
        model="syncflow-tiny",
    ),
    Ablation(
        "sync-guidance",
        "Does the guidance of Syncphony, turned to a sound that reads the video, help?",
        "no paper has it in this direction",
        (
            Variant("g = 0", {"sync_guidance": 0.0}),
            Variant("g = 1", {"sync_guidance": 1.0}),
            Variant("g = 2", {"sync_guidance": 2.0}),
        ),
        (IMPACT, V2A),
        ("prompts", "v2a"),
        model="syncflow-tiny",
    ),
    Ablation(
        "video-lead",
        "Should the video be ahead of the audio in flow time?",
        "no paper has it; SyncFlow shares one time (lead 0)",
        (
            Variant("lead 0", {"video_lead": 0.0}),
            Variant("lead 0.5", {"video_lead": 0.5}),
            Variant("lead 1", {"video_lead": 1.0}),
        ),
        (IMPACT, COLOR),
        ("prompts",),
        model="syncflow-tiny",
    ),
    Ablation(
        "steps",
        "How many steps are enough?",
        "SyncFlow takes 50 without an ablation",
        (
            Variant("32", {"steps": 32}),
            *(Variant(str(count), {"steps": count}) for count in (16, 8, 4, 2, 1)),
        ),
        (IMPACT, COLOR),
        ("prompts",),
        model="syncflow-tiny",
    ),
)
BY_NAME = {ablation.name: ablation for ablation in ABLATIONS}


def select(names: str | None) -> list[Ablation]:
    """The ablations of a list of names with commas between, or all. Raises ``ValueError`` for an unknown name."""
    if names is None:
        return list(ABLATIONS)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in BY_NAME]:
        raise ValueError(f"there is no ablation {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    return [BY_NAME[name] for name in wanted]
