/** What a command of the human monitor takes: letters of its flags, and how each operand is missed. */
export interface HmpSyntax {
  flags?: string;
  /** Those that follow the first operand. */
  laterFlags?: string;
  /** `missing`: said after the command's name; `missingWord`: said alone. */
  operands?: ReadonlyArray<{ missing: string } | { missingWord: string } | 'optional'>;
}

export interface HmpArguments {
  flags: ReadonlySet<string>;
  operands: readonly string[];
}

/** A line that no command takes as it is; the message is all that is printed. */
export class HmpSyntaxError extends Error {}

const ESCAPES: Readonly<Record<string, string>> = { n: '\n', r: '\r', '\\': '\\', "'": "'", '"': '"' };

/** Words apart, "quoted ones" whole, with \n, \r, \\, \' and \" in them. Errors: HmpSyntaxError. */
export function splitWords(line: string): string[] {
  const words: string[] = [];
  for (const [word, quoted] of line.matchAll(/"((?:[^"\\]|\\.)*)"|\S+/g)) {
    if (quoted === undefined && word.startsWith('"')) throw new HmpSyntaxError('unterminated string');
    words.push(quoted === undefined ? word : unescape(quoted));
  }
  return words;
}

function unescape(text: string): string {
  return text.replace(/\\(.)/g, (_whole, char: string) => {
    const plain = ESCAPES[char];
    if (plain === undefined) throw new HmpSyntaxError(`unsupported escape code: '\\${char}'`);
    return plain;
  });
}

/** Errors: HmpSyntaxError in QEMU's words; `name` is the command with its short form, `path` what help knows it by. */
export function parseArguments(
  words: readonly string[],
  { flags = '', laterFlags = '', operands = [] }: HmpSyntax,
  { name, path }: { name: string; path: string },
): HmpArguments {
  const refuse = (what: string): never => {
    throw new HmpSyntaxError(`${name}: ${what}\nTry "help ${path}" for more information`);
  };
  const given = new Set<string>();
  const takeFlags = (rest: readonly string[], known: string): readonly string[] => {
    for (; known !== '' && rest[0]?.startsWith('-') === true; rest = rest.slice(1)) {
      const letter = rest[0].charAt(1);
      if (letter === '' || !known.includes(letter) || rest[0].length > 2)
        refuse(`unsupported option ${rest[0]}`);
      given.add(letter);
    }
    return rest;
  };
  let rest = takeFlags(words, flags);
  if (laterFlags !== '') rest = [...rest.slice(0, 1), ...takeFlags(rest.slice(1), laterFlags)];
  for (const operand of operands.slice(rest.length)) {
    if (operand === 'optional') continue;
    if ('missing' in operand) refuse(operand.missing);
    else throw new HmpSyntaxError(`${operand.missingWord}\nTry "help ${path}" for more information`);
  }
  if (rest.length > operands.length) refuse('extraneous characters at the end of line');
  return { flags: given, operands: rest };
}
