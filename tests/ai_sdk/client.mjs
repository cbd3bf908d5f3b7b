// The AI SDK against a server: what each of its default calls gives, as one line of JSON a step.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, kind] = process.argv.slice(2);
const settings = { baseURL, apiKey: "none" };
const model = {
  responses: () => createOpenAI(settings)("tiny"),
  chat: () => createOpenAI(settings).chat("tiny"),
  compatible: () => createOpenAICompatible({ ...settings, name: "local", supportsStructuredOutputs: true })("tiny"),
}[kind]();
const schema = z.strictObject({ town: z.enum(["Ulm", "Bern"]), dry: z.boolean() });
const common = { model, prompt: "What is a comet?", temperature: 0, maxRetries: 0 };
const say = (name, value) => console.log(JSON.stringify({ [name]: value }));

say("text", (await generateText({ ...common, maxOutputTokens: 12 })).text);

let streamed = "";
for await (const piece of streamText({ ...common, maxOutputTokens: 12 }).textStream) streamed += piece;
say("stream", streamed);

const weather = tool({ description: "The weather", inputSchema: schema, execute: async () => "dry" });
const paint = tool({ description: "Paint it", inputSchema: z.strictObject({ colour: z.enum(["red", "blue"]) }) });
const called = await generateText({ ...common, tools: { weather, paint }, toolChoice: "required" });
say("calls", called.toolCalls.map(({ toolName, input }) => [toolName, input]));

const stream = streamText({ ...common, tools: { weather }, toolChoice: { type: "tool", toolName: "weather" } });
say("streamed calls", (await stream.toolCalls).map(({ toolName, input }) => [toolName, input]));

// Two steps: a call, then, with its result, an answer.
const steps = await generateText({
  ...common,
  maxOutputTokens: 60,
  tools: { weather },
  stopWhen: stepCountIs(2),
  prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }),
});
say("steps", steps.steps.map((step) => [step.toolCalls.length, step.text.length > 0]));

say("object", (await generateObject({ ...common, schema })).object);
const partial = streamObject({ ...common, schema });
for await (const _ of partial.partialObjectStream);
say("streamed object", await partial.object);
