/** What a text in the form of --help is made of. */
type Part =
  | { kind: 'heading'; text: string }
  | { kind: 'text'; lines: string[] }
  /** An option or a command, and what it does. */
  | { kind: 'item'; head: string; lines: string[] };

export interface Page {
  /** As `livedisk-run`. */
  name: string;
  summary: string;
  /** As --help prints it: what one types, then paragraphs, headings that end in a colon, indented items. */
  help: string;
  /** Further sections, each in the same form. */
  sections?: Readonly<Record<string, string>>;
  examples: ReadonlyArray<readonly [what: string, command: string]>;
  seeAlso: readonly string[];
}

/** Lines that go on begin further right than any item. */
const CONTINUES = /^ {8,}\S/;
const ITEM = /^ {1,7}\S/;
const USAGE = /^(usage:| +or:)\s*/i;

/** A manual page in roff, for section 1. */
export function manualPage(page: Page, version: string): string {
  const lines = page.help.trimEnd().split('\n');
  const usage = lines.filter((line) => USAGE.test(line)).map((line) => line.replace(USAGE, ''));
  const rest = lines.filter((line) => !USAGE.test(line));
  return `${[
    '.\\" Made by "npm run docs" from what --help prints.',
    `.TH ${page.name.toUpperCase()} 1 "" "livedisk ${version}" "livedisk"`,
    '.SH NAME',
    escape(`${page.name} - ${page.summary}`),
    '.SH SYNOPSIS',
    ...usage.flatMap((line, i) => [...(i > 0 ? ['.br'] : []), `.B ${escape(line)}`]),
    '.SH DESCRIPTION',
    ...parts(rest).flatMap(partLines),
    ...Object.entries(page.sections ?? {}).flatMap(([title, text]) => [
      `.SH ${title}`,
      ...parts(text.trimEnd().split('\n')).flatMap(partLines),
    ]),
    ...(page.examples.length > 0 ? ['.SH EXAMPLES'] : []),
    ...page.examples.flatMap(([what, command]) => [
      '.PP',
      escape(what),
      '.PP',
      '.nf',
      '.RS 4',
      ...command.split('\n').map(escape),
      '.RE',
      '.fi',
    ]),
    '.SH SEE ALSO',
    page.seeAlso.map((name) => `\\fB${escape(name)}\\fR(1)`).join(', '),
  ].join('\n')}\n`;
}

function parts(lines: readonly string[]): Part[] {
  const found: Part[] = [];
  let isNew = true;
  for (const line of lines) {
    const last = found.at(-1);
    if (line.trim() === '') isNew = true;
    else if (CONTINUES.test(line) && last?.kind === 'item') last.lines.push(line.trim());
    else if (ITEM.test(line)) found.push(item(line.trim()));
    else if (isNew && /^[A-Z][^.]*:$/.test(line)) found.push({ kind: 'heading', text: line.slice(0, -1) });
    else if (!isNew && last?.kind === 'text') last.lines.push(line);
    else found.push({ kind: 'text', lines: [line] });
    if (line.trim() !== '') isNew = false;
  }
  return found;
}

function item(line: string): Part {
  const [head = '', ...words] = line.split(/ {2,}| -- /);
  return { kind: 'item', head, lines: words.length > 0 ? [words.join(' ')] : [] };
}

function partLines(part: Part): string[] {
  switch (part.kind) {
    case 'heading':
      return [`.SS ${escape(part.text)}`];
    case 'text':
      return ['.PP', ...part.lines.map(escape)];
    case 'item':
      return ['.TP', `.B ${escape(part.head)}`, ...part.lines.map(escape)];
  }
}

/** Text stays text: no requests at the beginning of a line, no escapes, hyphens that can be copied. */
function escape(text: string): string {
  const safe = text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll('"', '\\(dq')
    .replaceAll('`', '\\(ga');
  return safe.replaceAll("'", '\\(aq').replace(/^\./, '\\&.');
}
