// Under an answer: the gate as a meter, and, where it opened, what was mixed and where it went.

import { memo } from "preact/compat";
import type { Decision } from "../api";
import { number, reading, stateOf } from "../gate";
import { Bar } from "../parts";
import type { Answer } from "../tree";

function Meter({ decision, kind }: { decision: Decision; kind: string | undefined }) {
  const { score, threshold } = reading(decision, kind);
  return (
    <span class={`meter ${decision.open ? "open" : "closed"}`} aria-hidden="true">
      <span class="meter-fill" style={{ width: `${score * 100}%` }} />
      {threshold !== null && <span class="meter-threshold" style={{ left: `${threshold * 100}%` }} />}
    </span>
  );
}

function layers(list: number[]): string {
  return `${list.length === 1 ? "layer" : "layers"} ${list.join(", ")}`;
}

function How({ decision, kind }: { decision: Decision; kind: string | undefined }) {
  const experts = [...(decision.experts ?? [])].sort((a, b) => b.weight - a.weight);
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
        <div>
          <dt>Gate</dt>
          <dd>
            read at layer {decision.gate_layer}; {reading(decision, kind).text}; g = {decision.g.toFixed(2)}
          </dd>
        </div>
        {decision.open ? (
          <>
            <div>
              <dt>Strength</dt>
              <dd>
                {number(decision.strength)} on the prompt, × {number(decision.answer_strength)} on the answer
              </dd>
            </div>
            <div>
              <dt>Steered</dt>
              <dd>
                {layers(decision.layers)}, scope {decision.scope}
              </dd>
            </div>
          </>
        ) : (
          <div>
            <dt>Steered</dt>
            <dd>nothing: the model answered as if the profile were not there</dd>
          </div>
        )}
      </dl>
    </div>
  );
}

export const Decisions = memo(({ answer }: { answer: Answer }) => {
  const { decisions, state, steering } = answer;
  if (!decisions) return null;
  if (!decisions.length) {
    return steering === false && state !== "streaming" ? <p class="unsteered">Answered without steering.</p> : null;
  }
  return (
    <div class="decisions">
      {decisions.map((decision) => {
        const kind = answer.kinds?.[decision.profile];
        return (
          <details key={decision.profile}>
            <summary>
              <span class="sr-only">Gate of profile </span>
              <span class="profile">{decision.profile}</span>
              <Meter decision={decision} kind={kind} />
              <span class={`state ${decision.open ? "open" : "closed"}`}>{stateOf(decision)}</span>
              <span class="sr-only">, {reading(decision, kind).text}</span>
            </summary>
            <How decision={decision} kind={kind} />
          </details>
        );
      })}
    </div>
  );
});
