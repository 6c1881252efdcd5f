// The form: sliders with the limits of the model, a file, and the parameters of a request.

import { ApiError } from "./api.js";

export const TASKS = {
  "text-to-audio-video": "Text to video and sound",
  "video-to-audio": "Soundtrack for a video",
  "image-to-audio-video": "Video from a first picture",
  continuation: "Continue a video",
  variation: "Variation of a video",
  "audio-to-video": "Video for a sound",
  "text-to-audio": "Sound alone",
};
const NEEDS = { video: ["video-to-audio", "continuation", "variation"], image: ["image-to-audio-video"], audio: ["audio-to-video"] };
const find = (id) => document.getElementById(id);
let sliders = [];
let model = null;
let file = null;

export function setModel(found) {
  model = found;
  const { defaults, limits } = model;
  sliders = [
    ["num_inference_steps", "Steps", 1, Math.min(limits.steps, 100), 1, defaults.num_inference_steps],
    ["seconds", "Seconds", 0.5, limits.seconds, 0.5, defaults.seconds],
    ["guidance_scale", "Guidance", 1, 10, 0.5, defaults.guidance_scale],
    ["sync_guidance", "Sync guidance", 0, 5, 0.5, defaults.sync_guidance],
    ["takes", "Takes of the sound", 1, limits.takes, 1, 1],
    ["strength", "Strength of the variation", 0.05, 1, 0.05, 0.5],
  ];
  find("sliders").replaceChildren(...sliders.map(makeSlider));
  find("size").placeholder = `${defaults.width}x${defaults.height}`;
  showTasks();
}

function makeSlider([name, label, min, max, step, value]) {
  const box = document.createElement("div");
  box.className = "slider";
  box.dataset.name = name;
  const caption = Object.assign(document.createElement("label"), { htmlFor: name, textContent: label });
  const output = Object.assign(document.createElement("output"), { htmlFor: name, value });
  const input = Object.assign(document.createElement("input"), { type: "range", id: name, name, min, max, step, value });
  input.addEventListener("input", () => {
    output.value = input.value;
    input.toggleAttribute("data-chosen", true);
  });
  const error = Object.assign(document.createElement("p"), { className: "error", hidden: true });
  error.dataset.field = name;
  box.append(caption, output, input, error);
  return box;
}

function setSlider(name, value) {
  const input = find(name);
  if (!input) return;
  input.value = value;
  input.parentElement.querySelector("output").value = input.value;
}

const kindOf = (found) => (found ? found.type.split("/")[0] : null);

function showTasks(chosen) {
  const fitting = file ? (NEEDS[kindOf(file)] ?? []) : ["text-to-audio-video", "text-to-audio"];
  const offered = model.tasks.filter((task) => fitting.includes(task));
  const options = offered.map((task) => new Option(TASKS[task], task));
  if (!options.length) options.push(new Option("This model has no task for such a file", ""));
  find("task").replaceChildren(...options);
  if (chosen && offered.includes(chosen)) find("task").value = chosen;
  showTask();
}

function showTask() {
  const task = find("task").value;
  const hidden = { strength: task !== "variation", seconds: Boolean(file) && task !== "image-to-audio-video" };
  for (const box of document.querySelectorAll(".slider")) box.hidden = hidden[box.dataset.name] ?? false;
  const { sync_guidance: always, v2a_sync_guidance: dubbed } = model.defaults;
  if (!find("sync_guidance").hasAttribute("data-chosen")) setSlider("sync_guidance", task === "video-to-audio" ? dubbed : always);
  find("size").disabled = false;
}

export function setFile(found) {
  file = found ?? null;
  find("file-label").querySelector("strong").textContent = file ? file.name : "Drop a video, sound or picture";
  find("file-help").textContent = file ? `${(file.size / 1024).toFixed(0)} KiB` : "or choose a file – optional";
  find("file-remove").hidden = !file;
  if (!file) find("file").value = "";
  showTasks();
}

export function values() {
  const found = { prompt: find("prompt").value.trim(), task: find("task").value };
  for (const box of document.querySelectorAll(".slider:not([hidden]) input")) found[box.name] = Number(box.value);
  for (const name of ["negative_prompt", "size"]) if (find(name).value.trim()) found[name] = find(name).value.trim();
  const seed = find("seed").value.trim();
  if (seed) found.seed = seed; // as text: larger than the numbers of JavaScript
  if (!found.task) delete found.task;
  return [found, file];
}

// Fills the form with the parameters of a video; what they leave out gets its default.
export function fill(params) {
  find("prompt").value = params.prompt ?? "";
  find("negative_prompt").value = params.negative_prompt ?? "";
  find("seed").value = params.seed ?? "";
  find("size").value = params.width ? `${params.width}x${params.height}` : (params.size ?? "");
  for (const [name, , , , , value] of sliders) {
    setSlider(name, params[name] ?? value);
    find(name).toggleAttribute("data-chosen", name in params);
  }
  showTasks(params.task);
  clearErrors();
}

export function clearErrors() {
  for (const place of document.querySelectorAll("#form .error")) place.hidden = true;
  for (const input of document.querySelectorAll('[aria-invalid="true"]')) input.removeAttribute("aria-invalid");
}

export function showError(error) {
  const field = error instanceof ApiError ? { width: "size", height: "size" }[error.param] ?? error.param : null;
  const place = (field && document.querySelector(`#form .error[data-field="${CSS.escape(field)}"]`)) || find("form-error");
  place.textContent = error.message;
  place.hidden = false;
  place.closest("details")?.setAttribute("open", "");
  const input = field && document.getElementById(field === "input_reference" ? "file" : field);
  if (input) {
    input.setAttribute("aria-invalid", "true");
    input.focus();
  }
}

export function listen() {
  const drop = find("drop");
  find("file").addEventListener("change", () => setFile(find("file").files[0]));
  find("file-remove").addEventListener("click", () => setFile(null));
  find("task").addEventListener("change", showTask);
  find("dice").addEventListener("click", () => (find("seed").value = Math.floor(Math.random() * 2 ** 31)));
  for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, () => drop.classList.add("over"));
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("generate").click();
  });
}
