// An agent in a few lines on Ollama's npm package: root, model, prompt, plain or streamed.
import { execSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { Ollama } = createRequire(process.env.CLIENTS + "/")("ollama");
const [root, model, prompt, how] = process.argv.slice(2);
const client = new Ollama({ host: root, headers: { Authorization: "Bearer dummy" } });
const object = (name) => ({ type: "object", properties: { [name]: { type: "string" } }, required: [name] });
const tools = [
  { type: "function", function: { name: "run", description: "", parameters: object("command") } },
  { type: "function", function: { name: "look", description: "", parameters: object("path") } },
];
const messages = [{ role: "user", content: prompt }];
for (;;) {
  const pieces = [];
  if (how === "plain") pieces.push(await client.chat({ model, messages, tools }));
  else for await (const piece of await client.chat({ model, messages, tools, stream: true })) pieces.push(piece);
  const content = pieces.map((piece) => piece.message.content).join("");
  const calls = pieces.flatMap((piece) => piece.message.tool_calls ?? []);
  if (!calls.length) {
    console.log(content);
    break;
  }
  messages.push({ role: "assistant", content, tool_calls: calls });
  for (const { function: { name, arguments: given } } of calls) {
    const result = { role: "tool", tool_name: name };
    if (name === "look") messages.push({ ...result, content: "here it is", images: [readFileSync(given.path).toString("base64")] });
    else messages.push({ ...result, content: execSync(given.command).toString() });
  }
}
