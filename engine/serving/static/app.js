// The page: one video on the stage, the others in the history, and links that reproduce a video.

import * as api from "./api.js";
import * as form from "./form.js";
import { makePlayer } from "./player.js";

const find = (id) => document.getElementById(id);
const PAGE = 12;
let shown = null; // the video on the stage
let following = null; // ends the event stream of the video on the stage
let animation = null; // of the preview
let oldest = null; // the last id of the history

function say(text) {
  find("toast").textContent = text;
  find("toast").hidden = false;
  setTimeout(() => (find("toast").hidden = true), 4000);
}

function stage(part) {
  for (const name of ["empty", "working", "result"]) find(name).hidden = name !== part;
}

// The video on the stage

async function show(video) {
  following?.abort();
  clearInterval(animation);
  shown = video;
  mark();
  if (video.status === "completed" || video.status === "failed") return showResult(video);
  stage("working");
  const canvas = find("preview");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  showProgress({ status: video.status, progress: video.progress, queue_position: video.queue_position });
  following = new AbortController();
  const { signal } = following;
  while (!signal.aborted && shown?.id === video.id) {
    let ended = false;
    try {
      await api.follow(video.id, signal, (name, data) => {
        if (name === "progress") return showProgress(data);
        if (name === "preview") return showPreview(data);
        ended = true;
        if (name === "deleted") return signal.aborted || gone();
        shown = data;
        refresh(data);
        return showResult(data);
      });
    } catch (error) {
      if (signal.aborted || ended) return undefined;
      if (error.status === 404) return gone();
    }
    if (ended) return undefined;
    find("status").textContent = "The server does not answer; trying again …";
    await new Promise((resolve) => setTimeout(resolve, 1500));
  }
  return undefined;
}

function gone() {
  shown = null;
  stage("empty");
  listHistory();
}

function showProgress(data) {
  find("progress").value = data.progress;
  if (shown && shown.status !== data.status) {
    shown.status = data.status;
    refresh(shown);
  }
  const left = data.estimated_seconds == null ? "" : ` · about ${Math.max(1, Math.round(data.estimated_seconds))} s left`;
  const waits = data.queue_position === 0 ? "Next in the queue" : `${data.queue_position} before this one in the queue`;
  const done = data.steps ? `${data.progress} %` : "Starting";
  find("status").textContent = (data.queue_position == null ? done : waits) + left;
}

function showPreview({ image, frames }) {
  const picture = new Image();
  picture.onload = () => {
    const canvas = find("preview");
    const [width, height] = [picture.width / frames, picture.height];
    canvas.width = width * 8;
    canvas.height = height * 8;
    canvas.style.aspectRatio = `${width} / ${height}`;
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    let frame = 0;
    const paint = () => {
      pen.drawImage(picture, width * frame, 0, width, height, 0, 0, canvas.width, canvas.height);
      frame = (frame + 1) % frames;
    };
    clearInterval(animation);
    paint();
    animation = setInterval(paint, 220);
  };
  picture.src = image;
}

async function showResult(video) {
  clearInterval(animation);
  stage("result");
  find("result-prompt").textContent = video.prompt || form.TASKS[video.task];
  const facts = [form.TASKS[video.task], `${video.seconds} s`, video.size, `${video.num_inference_steps} steps`, `seed ${video.seed}`];
  find("result-facts").textContent = facts.join(" · ");
  find("result-error").hidden = !video.error;
  find("result-error").textContent = video.error?.message ?? "";
  find("link").hidden = video.status === "failed";
  const players = find("players");
  for (const media of players.querySelectorAll("video, audio")) URL.revokeObjectURL(media.src);
  players.replaceChildren();
  const several = video.takes.length > 1;
  players.classList.toggle("several", several);
  try {
    const made = await Promise.all(video.takes.map((take) => makePlayer(video, take, several)));
    if (shown?.id === video.id) players.replaceChildren(...made);
  } catch (error) {
    find("result-error").textContent = error.message;
    find("result-error").hidden = false;
  }
}

// History

const STATES = { queued: "waiting", in_progress: "being made", completed: "", failed: "failed" };

function entry(video) {
  const item = document.createElement("li");
  item.dataset.id = video.id;
  const button = Object.assign(document.createElement("button"), { type: "button" });
  const blank = Object.assign(document.createElement("span"), { className: "blank" });
  const text = document.createElement("span");
  const title = Object.assign(document.createElement("b"), { textContent: video.prompt || form.TASKS[video.task] });
  const when = new Date(video.created_at * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const facts = [STATES[video.status], video.takes.length > 1 ? `${video.takes.length} takes` : "", when].filter(Boolean);
  const line = Object.assign(document.createElement("span"), { className: "quiet", textContent: facts.join(" · ") });
  text.append(title, line);
  button.append(blank, text);
  button.addEventListener("click", async () => {
    try {
      show(await api.getJson(`/v1/videos/${video.id}`));
      if (matchMedia("(max-width: 52rem)").matches) find("stage").scrollIntoView();
    } catch (error) {
      say(error.message);
      listHistory();
    }
  });
  item.append(button);
  if (video.takes[0]?.files.mp4) addThumbnail(video, blank);
  return item;
}

async function addThumbnail(video, blank) {
  try {
    const blob = await api.getBlob(`/v1/videos/${video.id}/content?variant=thumbnail`);
    const image = Object.assign(new Image(), { alt: "", src: URL.createObjectURL(blob) });
    blank.replaceWith(image);
  } catch {
    // the entry stays without a picture
  }
}

function refresh(video) {
  document.querySelector(`#history [data-id="${video.id}"]`)?.replaceWith(entry(video));
  mark();
}

function mark() {
  for (const item of find("history").children) item.firstChild.setAttribute("aria-current", item.dataset.id === shown?.id);
}

async function listHistory(more = false) {
  const after = more && oldest ? `&after=${oldest}` : "";
  const page = await api.getJson(`/v1/videos?limit=${PAGE}${after}`);
  const entries = page.data.map(entry);
  if (more) find("history").append(...entries);
  else find("history").replaceChildren(...entries);
  oldest = page.last_id ?? oldest;
  find("more").hidden = !page.has_more;
  find("history-empty").hidden = find("history").children.length > 0;
  mark();
  return page.data;
}

// Links

const encode = (values) => btoa(String.fromCharCode(...new TextEncoder().encode(JSON.stringify(values)))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const decode = (text) => JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (each) => each.charCodeAt(0))));

async function copyLink() {
  const link = `${location.origin}${location.pathname}#${encode(shown.params)}`;
  history.replaceState(null, "", link);
  try {
    await navigator.clipboard.writeText(link);
    say("The link is copied; it fills the form with these settings.");
  } catch {
    say("The link is in the address bar.");
  }
}

function readLink() {
  if (location.hash.length < 8) return;
  try {
    form.fill(decode(location.hash.slice(1)));
  } catch {
    say("The link is damaged.");
  }
}

// Actions

async function submit(event) {
  event.preventDefault();
  form.clearErrors();
  find("generate").disabled = true;
  try {
    const [values, file] = form.values();
    const video = await api.create(values, file);
    find("history").prepend(entry(video));
    find("history-empty").hidden = true;
    show(video);
    if (matchMedia("(max-width: 52rem)").matches) find("stage").scrollIntoView();
  } catch (error) {
    if (error.status === 401) askForKey();
    form.showError(error);
  } finally {
    find("generate").disabled = false;
  }
}

async function removeShown() {
  const video = shown;
  following?.abort();
  try {
    await api.remove(video.id);
  } catch (error) {
    if (error.status !== 404) return say(error.message);
  }
  say(video.status === "completed" || video.status === "failed" ? "The video is deleted." : "The video is cancelled.");
  return gone();
}

function askForKey() {
  find("key").hidden = false;
  find("key-dialog").showModal();
}

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
  document.dispatchEvent(new Event("themechange"));
}

async function start() {
  try {
    const { data } = await api.getJson("/v1/models");
    find("model").textContent = data[0].id;
    form.setModel(data[0]);
    readLink();
    const newest = (await listHistory())[0];
    if (newest && !location.hash) show(newest);
  } catch (error) {
    if (error.status === 401) return askForKey();
    say(error.message);
  } finally {
    find("generate").disabled = false; // not before, since a new video is added to the history that is shown
  }
  return undefined;
}

if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
form.listen();
find("form").addEventListener("submit", submit);
find("cancel").addEventListener("click", removeShown);
find("remove").addEventListener("click", removeShown);
find("reuse").addEventListener("click", () => {
  form.setFile(null);
  form.fill(shown.params);
  find("prompt").focus();
});
find("link").addEventListener("click", copyLink);
find("more").addEventListener("click", () => listHistory(true));
find("theme").addEventListener("click", switchTheme);
find("key").addEventListener("click", askForKey);
find("key-dialog").addEventListener("close", () => {
  api.setKey(find("key-value").value.trim());
  start();
});
window.addEventListener("hashchange", readLink);
start();
