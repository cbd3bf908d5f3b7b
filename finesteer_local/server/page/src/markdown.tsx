// Markdown as elements. marked only reads; no string of HTML is ever made or set, so there is nothing to sanitise:
// tags in the text show as text, images as links, and a link goes only to http(s) or mail.

import { marked, type Token, type Tokens } from "marked";
import { type ComponentChild, Fragment, h } from "preact";
import { memo } from "preact/compat";
import { useMemo } from "preact/hooks";
import { CopyButton } from "./parts";
import { highlight } from "./highlight";

const decoder = document.createElement("textarea");

/** `&amp;` as `&`: marked leaves entities to the HTML that we do not make. A textarea holds text, whatever is set. */
function decoded(text: string): string {
  return text.replace(/&(?:#\d{1,7}|#x[\da-f]{1,6}|[a-z][\da-z]{1,31});/gi, (entity) => {
    decoder.innerHTML = entity;
    return decoder.value;
  });
}

/** The address, if it is one that a reader may follow. */
function safe(href: string): string | null {
  try {
    const url = new URL(decoded(href));
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function Link({ href, children }: { href: string; children: ComponentChild }) {
  const address = safe(href);
  if (address === null) return <>{children}</>;
  return (
    <a href={address} target="_blank" rel="noopener noreferrer" title={address}>
      {children}
    </a>
  );
}

const Code = memo(({ code, language, whole }: { code: string; language: string; whole: boolean }) => {
  // While the block is still being written every token would colour it anew.
  const pieces = useMemo(() => (whole ? highlight(code, language) : [code]), [code, language, whole]);
  return (
    <figure class="code">
      <figcaption>
        <span>{language || "code"}</span>
        <CopyButton text={code} label="Copy code" />
      </figcaption>
      <pre tabIndex={0} aria-label={`Code${language ? `, ${language}` : ""}`}>
        <code>{pieces}</code>
      </pre>
    </figure>
  );
});

function Table({ token }: { token: Tokens.Table }) {
  const align = (i: number) => (token.align[i] ? `to-${token.align[i]}` : undefined);
  return (
    <div class="scrolls" tabIndex={0} role="group" aria-label="Table">
      <table>
        <thead>
          <tr>
            {token.header.map((cell, i) => (
              <th scope="col" class={align(i)}>
                {inline(cell.tokens)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {token.rows.map((row) => (
            <tr>
              {row.map((cell, i) => (
                <td class={align(i)}>{inline(cell.tokens)}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** Drawn at once: a component is drawn later, when nobody counts how deep it stands. */
function list(token: Tokens.List) {
  const items = token.items.map((item) => (
    <li class={item.task ? "task" : undefined}>
      {item.task && <span aria-label={item.checked ? "done" : "open"}>{item.checked ? "☑ " : "☐ "}</span>}
      {blocks(item.tokens.filter((t) => t.type !== "checkbox"))}
    </li>
  ));
  if (!token.ordered) return <ul>{items}</ul>;
  return <ol start={token.start === "" ? undefined : token.start}>{items}</ol>;
}

function block(token: Token): ComponentChild {
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading":
      // The page's own headings come first: an answer's begin at the third level.
      return h(`h${Math.min(token.depth + 2, 6)}`, { class: `level-${token.depth}` }, inline(token.tokens));
    case "paragraph":
      return <p>{inline(token.tokens)}</p>;
    case "text":
      return <>{token.tokens ? inline(token.tokens) : decoded(token.text)}</>;
    case "code": {
      const fence = /^ {0,3}(`{3,}|~{3,})/.exec(token.raw)?.[1];
      const whole = !fence || token.raw.trimEnd().length > fence.length * 2 && token.raw.trimEnd().endsWith(fence);
      return <Code code={token.text} language={/^[\w+#.-]{1,30}/.exec(token.lang ?? "")?.[0] ?? ""} whole={whole} />;
    }
    case "blockquote":
      return <blockquote>{blocks(token.tokens)}</blockquote>;
    case "list":
      return list(token as Tokens.List);
    case "table":
      return <Table token={token as Tokens.Table} />;
    case "hr":
      return <hr />;
    case "html":
      return <p>{token.raw.trimEnd()}</p>;
    default:
      return <p>{token.raw}</p>;
  }
}

const DEEPEST = 40; // levels; deeper text is an attack on the stack, not a document
let depth = 0;

function below(tokens: Token[], draw: (token: Token) => ComponentChild): ComponentChild[] {
  if (depth >= DEEPEST) return tokens.map((token) => token.raw);
  depth++;
  try {
    return tokens.map((token, i) => <Fragment key={i}>{draw(token)}</Fragment>);
  } finally {
    depth--;
  }
}

const blocks = (tokens: Token[] = []): ComponentChild[] => below(tokens, block);

function inline(tokens: Token[] = []): ComponentChild[] {
  return below(tokens, (token) => {
    switch (token.type) {
      case "strong":
        return <strong>{inline(token.tokens)}</strong>;
      case "em":
        return <em>{inline(token.tokens)}</em>;
      case "del":
        return <del>{inline(token.tokens)}</del>;
      case "codespan":
        return <code>{token.text}</code>;
      case "br":
        return <br />;
      case "link":
        return <Link href={token.href}>{inline(token.tokens)}</Link>;
      case "image":
        return <Link href={token.href}>[image: {decoded(token.text) || token.href}]</Link>;
      case "html":
        return /^<br\s*\/?>$/i.test(token.raw) ? <br /> : token.raw;
      case "escape":
        return token.text;
      case "text":
        return token.tokens ? <>{inline(token.tokens)}</> : decoded(token.text);
      default:
        return token.raw;
    }
  });
}

export const Markdown = memo(({ text }: { text: string }) => {
  const content = useMemo(() => {
    try {
      return blocks(marked.lexer(text, { gfm: true, breaks: true }));
    } catch {
      return <p>{text}</p>; // nested too deep to be read
    }
  }, [text]);
  return <div class="prose">{content}</div>;
});
