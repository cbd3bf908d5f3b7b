// Under an answer: the gate as a meter and, unfolded, why it decided so, what was mixed and where it went.

import { memo } from "preact/compat";
import { useState } from "preact/hooks";
import type { Decision } from "../api";
import {
  acted,
  answerReading,
  answerWords,
  kindsWords,
  number,
  policyWords,
  questionState,
  type Reading,
  reading,
  shownByAnswer,
} from "../gate";
import { Bar } from "../parts";
import type { Answer, Correction } from "../tree";
import { Keep, Kept, type Of, otherwise } from "./wrong";

export type { Of } from "./wrong";

function Meter({ at: { score, threshold }, open }: { at: Reading; open: boolean }) {
  return (
    <span class={`meter ${open ? "open" : "closed"}`} aria-hidden="true">
      <span class="meter-fill" style={{ width: `${score * 100}%` }} />
      {threshold !== null && <span class="meter-threshold" style={{ left: `${threshold * 100}%` }} />}
    </span>
  );
}

/** The gate on the answer, below the question's: where it has a score to show. */
function AnswerMeter({ decision }: { decision: Decision }) {
  const { answer } = decision;
  const found = answer && answerReading(answer);
  if (!answer || !found) return null;
  const open = shownByAnswer(decision);
  const back = answer.taken_back ? `, ${answer.taken_back} taken back` : "";
  return (
    <>
      <span class="of-answer">
        <span class="sr-only">, the gate on its </span>answer
      </span>
      <Meter at={found} open={open} />
      <span class={`state of-answer ${open ? "open" : "closed"}`}>
        {open ? `open at token ${answer.opened_at}${back}` : "closed"}
        <span class="sr-only">, {found.text}</span>
      </span>
    </>
  );
}

function layers(list: number[]): string {
  return `${list.length === 1 ? "layer" : "layers"} ${list.join(", ")}`;
}

/** What became of an answer that no vector was added to. */
function unsteered(decision: Decision): string {
  if (decision.action === "refuse") return "nothing was generated: the answer is the profile's own words";
  if (decision.g > 0 || policyWords(decision) || shownByAnswer(decision)) return "nothing: the answer is the model's own";
  return "nothing: the model answered as if the profile were not there";
}

function Fact({ name, text }: { name: string; text: string }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{text}</dd>
    </div>
  );
}

function How({ decision, kind, over }: { decision: Decision; kind: string | undefined; over: boolean }) {
  const experts = [...(decision.experts ?? [])].sort((a, b) => b.weight - a.weight);
  const { answer } = decision;
  const policy = policyWords(decision);
  const g = shownByAnswer(decision) ? "" : `; g = ${decision.g.toFixed(2)}`;
  const scores = (answer && answerReading(answer)?.text) || "";
  return (
    <div class="how">
      {decision.open && experts.length > 0 && (
        <table class="experts">
          <caption>Experts mixed for this question</caption>
          <tbody>
            {experts.map((expert) => (
              <tr>
                <th scope="row">{expert.name}</th>
                <td class="wide">
                  <Bar share={expert.weight} />
                </td>
                <td class="figure">{Math.round(expert.weight * 100)} %</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      <dl class="facts">
        <Fact name="Gate" text={`read at layer ${decision.gate_layer}; ${reading(decision, kind).text}${g}`} />
        {decision.kinds && decision.kinds.length > 0 && <Fact name="Kinds" text={kindsWords(decision)} />}
        {policy && <Fact name="Policy" text={policy} />}
        {answer && <Fact name="Answer" text={answerWords(answer, over) + (scores && `; ${scores}`)} />}
        {decision.open ? (
          <>
            <Fact
              name="Strength"
              text={`${number(decision.strength)} on the prompt, × ${number(decision.answer_strength)} on the answer`}
            />
            <Fact name="Steered" text={`${layers(decision.layers)}, scope ${decision.scope}`} />
          </>
        ) : (
          <Fact name="Steered" text={unsteered(decision)} />
        )}
      </dl>
    </div>
  );
}

interface OneProps {
  decision: Decision;
  kind: string | undefined;
  over: boolean;
  of: Of | undefined;
  kept: Correction | undefined;
}

function One({ decision, kind, over, of, kept }: OneProps) {
  const [asks, setAsks] = useState(false);
  const should = of && over ? otherwise(decision) : null;
  const open = acted(decision) && !shownByAnswer(decision);
  const at = reading(decision, kind);
  return (
    <div class="decision">
      <details>
        <summary>
          <span class="sr-only">Gate of profile </span>
          <span class="profile">{decision.profile}</span>
          <Meter at={at} open={open} />
          <span class={`state ${open ? "open" : "closed"}`}>{questionState(decision)}</span>
          <span class="sr-only">, {at.text}</span>
          <AnswerMeter decision={decision} />
        </summary>
        <How decision={decision} kind={kind} over={over} />
      </details>
      {should && !kept && (
        <button type="button" class="link wrong-ask" aria-expanded={asks} onClick={() => setAsks(!asks)}>
          Wrong?<span class="sr-only"> Correct what {decision.profile} decided</span>
        </button>
      )}
      {of && kept && <Kept decision={decision} kept={kept} {...of} />}
      {of && should && !kept && asks && (
        <Keep decision={decision} kept={kept} should={should} onDone={() => setAsks(false)} {...of} />
      )}
    </div>
  );
}

export const Decisions = memo(({ answer, chat, reply }: { answer: Answer } & Partial<Of>) => {
  const { decisions, state, steering } = answer;
  if (!decisions) return null;
  if (!decisions.length) {
    return steering === false && state !== "streaming" ? <p class="unsteered">Answered without steering.</p> : null;
  }
  const of = chat && reply ? { chat, reply } : undefined;
  return (
    <div class="decisions">
      {decisions.map((decision) => (
        <One
          key={decision.profile}
          decision={decision}
          kind={answer.kinds?.[decision.profile]}
          over={state !== "streaming"}
          of={of}
          kept={answer.wrong?.[decision.profile]}
        />
      ))}
    </div>
  );
});
