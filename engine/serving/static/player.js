// One take: its video or sound, and under one time axis the waveform, the motion and the moments of both.

import { getBlob, getJson } from "./api.js";

const STEP = 0.1; // seconds of an arrow key

export async function makePlayer(video, take, several) {
  const silent = !take.files.mp4;
  const path = `/v1/videos/${video.id}`;
  const [blob, found] = await Promise.all([
    getBlob(`${path}/content?variant=${silent ? "audio" : "video"}&take=${take.take}`),
    getJson(`${path}/inspection?take=${take.take}`),
  ]);
  const box = document.createElement("div");
  box.className = "player";
  const media = document.createElement(silent ? "audio" : "video");
  Object.assign(media, { controls: true, loop: true, playsInline: true, src: URL.createObjectURL(blob) });
  media.setAttribute("aria-label", several ? `Take ${take.take}` : "The video");
  const timeline = makeTimeline(media, found, Number(video.seconds));
  if (several) {
    const caption = document.createElement("h3");
    caption.textContent = `Take ${take.take} · audio seed ${take.audio_seed}`;
    box.append(caption);
  }
  const below = document.createElement("div");
  below.append(timeline, legend(found));
  box.append(media, below, downloads(video, take));
  media.addEventListener("play", () => {
    for (const other of document.querySelectorAll(".player video, .player audio")) if (other !== media) other.pause();
  });
  return box;
}

function legend(found) {
  const texts = [["wave", "waveform"], ["onset", "onsets"]];
  if (found.inspection) texts.push(["motion", "motion"], ["impact", `${found.inspection.event_kind}s`]);
  const list = document.createElement("p");
  list.className = "legend";
  for (const [name, text] of texts) {
    const entry = document.createElement("span");
    const sign = document.createElement("i");
    sign.className = name;
    entry.append(sign, text);
    list.append(entry);
  }
  return list;
}

function downloads(video, take) {
  const row = document.createElement("div");
  row.className = "downloads";
  const kinds = take.files.mp4 ? [["video", "mp4"], ["audio", "wav"], ["frames", "zip"]] : [["audio", "wav"]];
  for (const [variant, suffix] of kinds) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: `Save ${suffix === "zip" ? "frames" : suffix}` });
    button.addEventListener("click", async () => {
      const blob = await getBlob(`/v1/videos/${video.id}/content?variant=${variant}&take=${take.take}`);
      const anchor = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${video.id}-${take.take}.${suffix}` });
      anchor.click();
      URL.revokeObjectURL(anchor.href);
    });
    row.append(button);
  }
  return row;
}

function makeTimeline(media, found, seconds) {
  const canvas = document.createElement("canvas");
  canvas.className = "timeline";
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "slider");
  canvas.setAttribute("aria-label", "Position; waveform, onsets and motion of the clip");
  canvas.setAttribute("aria-valuemin", "0");
  canvas.setAttribute("aria-valuemax", seconds);
  const seek = (time) => (media.currentTime = Math.min(Math.max(time, 0), seconds - 0.01));
  const seekTo = (event) => seek((event.offsetX / canvas.clientWidth) * seconds);
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    seekTo(event);
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && seekTo(event));
  canvas.addEventListener("keydown", (event) => {
    const actions = {
      ArrowLeft: () => seek(media.currentTime - STEP),
      ArrowRight: () => seek(media.currentTime + STEP),
      Home: () => seek(0),
      End: () => seek(seconds),
      " ": () => (media.paused ? media.play() : media.pause()),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });
  const paint = () => {
    canvas.setAttribute("aria-valuenow", media.currentTime.toFixed(2));
    draw(canvas, found, seconds, media.currentTime);
  };
  const loop = () => {
    paint();
    if (!media.paused && canvas.isConnected) requestAnimationFrame(loop);
  };
  media.addEventListener("play", loop);
  for (const name of ["seeked", "timeupdate", "pause"]) media.addEventListener(name, paint);
  new ResizeObserver(paint).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  document.addEventListener("themechange", paint);
  return canvas;
}

function draw(canvas, { waveform, inspection }, seconds, now) {
  const scale = devicePixelRatio;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const colour = (name) => getComputedStyle(canvas).getPropertyValue(`--${name}`);
  const x = (time) => (time / seconds) * width;
  const split = inspection ? height * 0.6 : height;
  const peak = Math.max(0.05, ...waveform.flat().map(Math.abs));
  pen.fillStyle = colour("wave");
  waveform.forEach(([low, high], index) => {
    const top = split / 2 - (high / peak) * split * 0.42;
    const bottom = split / 2 - (low / peak) * split * 0.42;
    pen.fillRect((index / waveform.length) * width, top, Math.max(width / waveform.length, 1), Math.max(bottom - top, 1));
  });
  if (inspection) {
    pen.strokeStyle = colour("line");
    pen.strokeRect(0, split, width, 0);
    drawMotion(pen, inspection, x, split + 14, height - 8, colour("motion"));
    pen.strokeStyle = colour("mark");
    pen.lineWidth = 1.5;
    for (const onset of inspection.onsets) {
      pen.beginPath();
      pen.moveTo(x(onset), 4);
      pen.lineTo(x(onset), split - 4);
      pen.stroke();
    }
  }
  pen.fillStyle = colour("text");
  pen.fillRect(x(now) - 0.75, 0, 1.5, height);
}

function drawMotion(pen, inspection, x, top, bottom, colour) {
  const most = Math.max(1e-6, ...inspection.motion);
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = 1.75;
  pen.lineJoin = "round";
  pen.beginPath();
  inspection.motion.forEach((value, index) => pen.lineTo(x(inspection.motion_times[index]), bottom - (value / most) * (bottom - top)));
  pen.stroke();
  for (const event of inspection.events) {
    pen.beginPath();
    pen.moveTo(x(event), top - 10);
    pen.lineTo(x(event) - 5, top - 2);
    pen.lineTo(x(event) + 5, top - 2);
    pen.fill();
  }
}
