const WORDS: ReadonlyMap<string, string> = new Map([
  ['True', 'true'],
  ['False', 'false'],
  ['None', 'null'],
]);

const PARTS = /("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|([A-Za-z_]\w*)|,(?=\s*[}\]])/g;

/**
 * A Python literal as JSON text: True, False and None get JSON's names, and a comma before a closing bracket goes. Quotes
 * stay as they are: parseJson takes single ones.
 */
export function jsonOfPython(text: string): string {
  return text.replace(
    PARTS,
    (_part, quoted?: string, word?: string) =>
      quoted ?? (word === undefined ? '' : (WORDS.get(word) ?? word)),
  );
}
