// `openai_media.mjs FOLDER URL HEARS SPEAKS`: OpenAI's npm package speaks a text and transcribes it; prints JSON.
import { createRequire } from "node:module";
import { Readable } from "node:stream";

const [folder, url, hears, speaks] = process.argv.slice(2);
const { OpenAI, toFile } = createRequire(folder + "/")("openai");
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "none", maxRetries: 0 });

const spoken = await client.audio.speech.create({ model: speaks, voice: "alloy", input: "Good evening.", response_format: "wav" });
const pieces = [];
for await (const piece of Readable.fromWeb(spoken.body)) pieces.push(piece);
const wav = Buffer.concat(pieces);

const file = await toFile(wav, "evening.wav", { type: "audio/wav" });
const plain = await client.audio.transcriptions.create({ model: hears, file });
const verbose = await client.audio.transcriptions.create({ model: hears, file, response_format: "verbose_json" });
const translated = await client.audio.translations.create({ model: hears, file });
const refused = await client.audio.transcriptions
  .create({ model: speaks, file })
  .catch((error) => ({ kind: error.constructor.name, status: error.status, message: error.message }));
console.log(
  JSON.stringify({
    begins: wav.subarray(0, 4).toString(),
    size: wav.length,
    contentType: spoken.headers.get("content-type"),
    text: plain.text,
    duration: verbose.duration,
    translated: translated.text,
    refused,
  }),
);
