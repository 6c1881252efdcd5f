"""Steps of a model whose towers read each other: a branch is a row of one pass through both."""

from __future__ import annotations

from torch import Tensor

from ..model.denoiser import AudioInputs, JointInputs
from .batch import Batch, Index
from .latent_state import Modality
from .step_plan import JointStepPlan, Weights, lay_out_jointly


class JointBatch(Batch):
    """Requests of a ``global_local`` model, each with one take."""

    def plan(self) -> JointStepPlan:
        """The rows of the step that comes next."""
        return self._planned(self._weights(self.video), self._weights(self.audio))[0]

    def _planned(self, video: list[Weights], audio: list[Weights]) -> tuple[JointStepPlan, Index]:
        key = self._key(video, audio)
        if key not in self._plans:
            layout = lay_out_jointly(video, audio)
            rows = layout.rows
            index = {
                "track": self._tensor([row.track for row in rows]),
                "text": self._text_index([(row.track, row.branch.text) for row in rows]),
                "static": self._tensor([row.branch.static for row in rows]),
                "muted": self._tensor([row.branch.muted for row in rows]),
                "bridged": self._tensor(list(range(layout.bridged))),
                "video": self._tensor([rows.index(row) for row in layout.video]),
                "audio": self._tensor([rows.index(row) for row in layout.audio]),
                **self._sums("video", layout.video_weights),
                **self._sums("audio", layout.audio_weights),
            }
            self._plans[key] = layout, index
        return self._plans[key]

    def _step(self, video: list[Weights], audio: list[Weights]) -> None:
        velocities, index = self._velocities(video, audio)
        self._move(velocities, index, self.video, self.audio)

    def _velocities(self, video: list[Weights], audio: list[Weights]) -> tuple[dict[Modality, Tensor], Index]:
        layout, index = self._planned(video, audio)
        if not layout.rows:
            return {}, index
        static = index["static"] if any(row.branch.static for row in layout.rows) else None
        muted = index["muted"] if any(row.branch.muted for row in layout.rows) else None
        z_a, times_a = self._audio_rows(index["track"], muted)
        if not layout.bridged and not layout.video:  # a sound alone
            return {"audio": self.model.audio_pass(AudioInputs(z_a, times_a, self.text, index["text"]))[0]}, index
        z_v, times_v = self._video_rows(index["track"], static)
        reference = None
        if self.jobs[0].reference is not None:  # then all have one, of the same length
            reference = self.reference[index["track"][: layout.bridged]].to(z_a)
        inputs = JointInputs(
            z_v,
            z_a,
            times_v,
            times_a,
            self.text,
            index["text"],
            bridged_rows=index["bridged"] if layout.bridged < len(layout.rows) else None,
            reference=reference,
            video_output_rows=index["video"] if layout.video != layout.rows else None,
            audio_output_rows=index["audio"] if layout.audio != layout.rows else None,
        )
        found = self.model.joint_pass(inputs)
        velocities: dict[Modality, Tensor] = {}
        if layout.video and found.video is not None:
            velocities["video"] = found.video
        if layout.audio and found.audio is not None:
            velocities["audio"] = found.audio
        return velocities, index
