"""Steps of a model whose towers read each other: a branch is a row of one pass through both."""

from __future__ import annotations

from torch import Tensor

from ..model.denoiser import AudioInputs, JointInputs, Modulation
from .batch import Batch, Index
from .latent_state import Modality
from .step_plan import JointStepPlan, Weights, plan_joint_step


class JointBatch(Batch):
    """Requests of a model in which each tower reads the other, each with one take."""

    def plan(self) -> JointStepPlan:
        """The rows of the step that comes next."""
        return self._planned(self._weights(self.video), self._weights(self.audio))[0]

    def _planned(self, video: list[Weights], audio: list[Weights]) -> tuple[JointStepPlan, Index]:
        key = self._key(video, audio)
        if key not in self._plans:
            plan = plan_joint_step(video, audio)
            rows = plan.rows
            index = {
                "sample": self._tensor([row.sample for row in rows]),
                "text": self._text_index([(row.sample, row.branch.text) for row in rows]),
                "static": self._tensor([row.branch.static for row in rows]),
                "muted": self._tensor([row.branch.muted for row in rows]),
                "bridged": self._tensor(list(range(plan.bridged))),
                "video": self._tensor([rows.index(row) for row in plan.video]),
                "audio": self._tensor([rows.index(row) for row in plan.audio]),
                **self._sums("video", plan.video_weights),
                **self._sums("audio", plan.audio_weights),
            }
            self._plans[key] = plan, index
        return self._plans[key]

    def _step(self, video: list[Weights], audio: list[Weights]) -> None:
        velocities, index = self._velocities(video, audio)
        self._move(velocities, index, self.video, self.audio)

    def _velocities(self, video: list[Weights], audio: list[Weights]) -> tuple[dict[Modality, Tensor], Index]:
        plan, index = self._planned(video, audio)
        if not plan.rows:
            return {}, index
        static = index["static"] if any(row.branch.static for row in plan.rows) else None
        muted = index["muted"] if any(row.branch.muted for row in plan.rows) else None
        z_a, times_a = self._audio_rows(index["sample"], muted)
        modulated = len(times_a) > 1  # the times of the audio as those of the video: bidirectional
        time_token = None if modulated else times_a[0][:, 0]
        if not plan.bridged and not plan.video and time_token is not None:  # a sound alone
            return {"audio": self.model.audio_pass(AudioInputs(z_a, time_token, self.text, index["text"]))[0]}, index
        z_v, times_v = self._video_rows(index["sample"], static)
        reference = None
        if self.jobs[0].reference is not None:  # then all have one, of the same length
            reference = self.reference[index["sample"][: plan.bridged]].to(z_a)
        inputs = JointInputs(
            z_v,
            z_a,
            times_v,
            time_token,
            self.text,
            index["text"],
            bridged_rows=index["bridged"] if plan.bridged < len(plan.rows) else None,
            reference=reference,
            video_output_rows=index["video"] if plan.video != plan.rows else None,
            audio_output_rows=index["audio"] if plan.audio != plan.rows else None,
            frame_times=self.frame_times,
            audio_modulation=Modulation(*times_a) if modulated else None,
            prior=self.prior,
            prior_of_row=None if self.prior is None else index["sample"],
            pixels=self.pixels,
        )
        found = self.model.joint_pass(inputs)
        velocities: dict[Modality, Tensor] = {}
        if plan.video and found.video is not None:
            velocities["video"] = found.video
        if plan.audio and found.audio is not None:
            velocities["audio"] = found.audio
        return velocities, index
