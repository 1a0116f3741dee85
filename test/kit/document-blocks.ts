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
  /** It begins in a new, empty folder. */
  isFresh: boolean;
}

const PART =
  /^(#+ .*)$|^```(\w*)(?: \S+)?\n([^]*?)^```$|^!\[[^\]]*\]\(([^)]+)\)$|^<!-- (fresh|not run: [^]*?) -->$/gm;

/** The blocks of a Markdown document, in order: ```sh is run, ```text after it is what it prints. */
export function commandBlocks(text: string): CommandBlock[] {
  const blocks: CommandBlock[] = [];
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
        notRun: mark?.startsWith('not run: ') === true ? mark.slice('not run: '.length) : undefined,
        isFresh: isFresh || mark === 'fresh',
      });
      mark = undefined;
      isFresh = false;
    }
  }
  return blocks;
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
