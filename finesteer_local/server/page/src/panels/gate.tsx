// The gate over the conversation: one plot a profile, and the same as a table.

import type { Decision } from "../api";
import { acted, number, place, reading, stateOf } from "../gate";
import type { Chat } from "../store";
import { chosen, path, questionOf } from "../tree";

interface Point {
  number: number; // of the question
  turn: string;
  question: string;
  decision: Decision;
  kind: string | undefined;
}

const HEIGHT = 132;
const TOP = 10;
const BOTTOM = 22;
const LEFT = 8;
const RIGHT = 8;
const WIDTH = 304;
const NARROWEST = 22; // px between questions; a longer conversation scrolls

function points(chat: Chat): Map<string, Point[]> {
  const found = new Map<string, Point[]>();
  let number = 0;
  for (const turn of path(chat.value)) {
    if (turn.role === "user") number++;
    else {
      const answer = chosen(turn);
      const question = questionOf(chat.value, turn)?.content ?? "";
      for (const decision of answer.decisions ?? []) {
        const point = { number, turn: turn.id, question, decision, kind: answer.kinds?.[decision.profile] };
        found.set(decision.profile, [...(found.get(decision.profile) ?? []), point]);
      }
    }
  }
  return found;
}

function goTo(turn: string): void {
  const element = document.getElementById(`turn-${turn}`);
  element?.scrollIntoView({ block: "center", behavior: "smooth" });
}

function Plot({ name, list, questions }: { name: string; list: Point[]; questions: number }) {
  const width = Math.max(WIDTH, LEFT + RIGHT + questions * NARROWEST);
  const step = (width - LEFT - RIGHT) / questions;
  const x = (n: number) => LEFT + (n - 0.5) * step;
  const y = (share: number) => TOP + (1 - share) * (HEIGHT - TOP - BOTTOM);
  const at = (p: Point) => [x(p.number), y(place(p.kind, p.decision.score))] as const;
  const last = list.at(-1)!;
  const always = last.kind === "always";
  const threshold = y(place(last.kind, last.decision.threshold));
  const opened = list.filter((p) => acted(p.decision)).length;
  const every = Math.ceil(questions / ((width - LEFT - RIGHT) / NARROWEST));
  return (
    <div class="scrolls" tabIndex={0} role="group" aria-label={`Plot of ${name}`}>
      <svg
        class="plot"
        width={width}
        height={HEIGHT}
        viewBox={`0 0 ${width} ${HEIGHT}`}
        role="img"
        aria-label={`Gate of ${name}: open for ${opened} of ${list.length} questions. The table below has the figures.`}
      >
        {!always && (
          <>
            <rect class="zone" x={LEFT} y={TOP} width={width - LEFT - RIGHT} height={threshold - TOP} />
            <line class="threshold" x1={LEFT} x2={width - RIGHT} y1={threshold} y2={threshold} />
            <text x={LEFT + 4} y={TOP + 12}>
              opens
            </text>
          </>
        )}
        <line class="axis" x1={LEFT} x2={width - RIGHT} y1={HEIGHT - BOTTOM} y2={HEIGHT - BOTTOM} />
        <polyline points={list.map((p) => at(p).join()).join(" ")} />
        {list.map((p) => {
          const [cx, cy] = at(p);
          return (
            <circle class={acted(p.decision) ? "open" : "closed"} cx={cx} cy={cy} r={4.5} onClick={() => goTo(p.turn)}>
              <title>{`${p.number}. ${p.question.slice(0, 80)}: ${stateOf(p.decision)}, ${reading(p.decision, p.kind).text}`}</title>
            </circle>
          );
        })}
        {list
          .filter((p) => p.number % every === 0 || every === 1)
          .map((p) => (
            <text class="number" x={x(p.number)} y={HEIGHT - 6}>
              {p.number}
            </text>
          ))}
      </svg>
    </div>
  );
}

function Figures({ name, list }: { name: string; list: Point[] }) {
  return (
    <div class="scrolls" tabIndex={0} role="group" aria-label={`Figures of ${name}`}>
      <table class="figures-table">
        <caption class="sr-only">Gate of {name}, question by question</caption>
        <thead>
          <tr>
            <th scope="col">Question</th>
            <th scope="col">Gate</th>
            <th scope="col">Score</th>
            <th scope="col">Strength</th>
          </tr>
        </thead>
        <tbody>
          {list.map((p) => (
            <tr>
              <th scope="row">
                <button type="button" class="link" title={p.question} onClick={() => goTo(p.turn)}>
                  <span>
                    {p.number}. {p.question}
                  </span>
                </button>
              </th>
              <td class={`state ${acted(p.decision) ? "open" : "closed"}`}>{stateOf(p.decision)}</td>
              <td>{p.kind === "always" ? "–" : number(p.decision.score)}</td>
              <td>{p.decision.open ? number(p.decision.strength) : "–"}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

export function GatePanel({ chat }: { chat: Chat }) {
  const found = points(chat);
  const questions = path(chat.value).filter((turn) => turn.role === "user").length;
  if (!found.size) return <p class="note">No gate has read a question of this conversation yet.</p>;
  return (
    <>
      {[...found].map(([name, list]) => {
        const last = list.at(-1)!;
        return (
          <section class="gate" key={name} aria-label={`Gate of ${name}`}>
            <div class="row">
              <h3>{name}</h3>
              <span class="note">
                {last.kind === "always" ? "no gate" : `threshold ${number(last.decision.threshold)}`}
              </span>
            </div>
            <Plot name={name} list={list} questions={questions} />
            <Figures name={name} list={list} />
          </section>
        );
      })}
    </>
  );
}
