/** A block of commands of a document, and what stands with it. */
export interface CommandBlock {
  /** For messages: the heading that it is under, and which of its blocks. */
  title: string;
  commands: string;
  /** What it prints, where the document says so. */
  output: string | undefined;
  /** Files of pictures that are shown after it. */
  pictures: string[];
  /** Why it is not run. */
  notRun: string | undefined;
  /** It goes on until Ctrl-C, which is pressed when its output has this. */
  until: string | undefined;
  /** It begins in a new, empty folder. */
  isFresh: boolean;
}

const PART =
  /^(#+ .*)$|^```(\w*)(?: \S+)?\n([^]*?)^```$|^!\[[^\]]*\]\(([^)]+)\)$|^<!-- (fresh|until: .*?|not run: [^]*?) -->$/gm;
const NOT_RUN = /^not run: ([^]*)$/;
const UNTIL = /^until: (.*)$/;

/**
 * The blocks of a Markdown document, in order: ```sh is run, ```text after it is what it prints. Errors: where something
 * stands as code that is neither, and so would not be seen when it is not right any more.
 */
export function commandBlocks(text: string): CommandBlock[] {
  const blocks: CommandBlock[] = [];
  assertNoOther(text);
  let heading = '';
  let mark: string | undefined;
  let isFresh = true;
  for (const [, title, language, body, picture, comment] of text.matchAll(PART)) {
    const last = blocks.at(-1);
    if (title !== undefined) heading = title.replace(/^#+ /, '');
    else if (comment !== undefined) mark = comment;
    else if (picture !== undefined) last?.pictures.push(picture);
    else if (language === 'text' && last) last.output = body ?? '';
    else if (language === 'sh') {
      const count = blocks.filter((block) => block.title.startsWith(`${heading}, `)).length;
      blocks.push({
        title: `${heading}, ${count + 1}`,
        commands: body ?? '',
        output: undefined,
        pictures: [],
        notRun: NOT_RUN.exec(mark ?? '')?.[1],
        until: UNTIL.exec(mark ?? '')?.[1],
        isFresh: isFresh || mark === 'fresh',
      });
      mark = undefined;
      isFresh = false;
    }
  }
  return blocks;
}

/** Pictures of chains stand as code, too. */
const CHAIN = /^(?: *(?:\[\w+\]|<--|=>))+$/;

/** Nothing stands as code but what is run, what that prints, and chains. */
function assertNoOther(text: string): void {
  const fences = [...text.matchAll(/^```(\w*)[^]*?^```$/gm)].flatMap(([block, language = '']) =>
    language === 'sh' || language === 'text' ? [] : [block],
  );
  const rest = text.replace(/^```[^]*?^```$/gm, '');
  // What is indented is code after an empty line, but for lists, which go on.
  const indented = [...rest.matchAll(/^(?![ *-]|\d+\.).*\n\n(( {4}.*\n)+)/gm)].flatMap(([, block = '']) =>
    block.split('\n').every((line) => line === '' || CHAIN.test(line)) ? [] : [block],
  );
  const [other] = [...fences, ...indented];
  if (other !== undefined) throw new Error(`neither \`\`\`sh nor \`\`\`text, so no test runs it:\n${other}`);
}

/** What changes from machine to machine: how much room a file takes, times. */
export function comparable(output: string): string {
  return output
    .replace(/\d+(\.\d+)? ([KMG]iB|B)( +\d+%)?( +)?/g, 'SIZE ')
    .replace(/"timestamp": \{[^}]*\}, /g, '')
    .replace(/[ \t]+$/gm, '');
}

/** Whether a program's output is what a document shows of it, where a line `...` stands for any number of lines. */
export function isShown(expected: string, output: string): boolean {
  const parts = `\n${comparable(expected)}`.split(/\n\.\.\.(?=\n)/);
  const text = `\n${comparable(output)}`;
  let at = 0;
  for (const [i, part] of parts.entries()) {
    const isLast = i === parts.length - 1;
    const found = isLast ? text.lastIndexOf(part) : text.indexOf(part, at);
    if (
      found < at ||
      (i === 0 && found !== 0) ||
      (isLast && part !== '\n' && found + part.length !== text.length)
    )
      return false;
    at = found + part.length;
    // A part ends with a line.
    if (!isLast && part !== '' && text[at] !== '\n') return false;
  }
  return true;
}
