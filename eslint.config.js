import tseslint from 'typescript-eslint';

/** Modules that decode on-disk or on-wire integers: the only ones that may use bitwise operators on fields. */
const CODECS = ['src/base/**', 'src/nbd/**', 'src/drivers/qcow2/**', 'src/host/**', 'src/testing/**'];

export default tseslint.config(
  { ignores: ['dist/**', 'node_modules/**', '**/*.mjs', 'eslint.config.js'] },
  ...tseslint.configs.recommendedTypeChecked,
  {
    languageOptions: { parserOptions: { project: './tsconfig.json' } },
    rules: {
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/no-misused-promises': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': [
        'error',
        { considerDefaultExhaustiveForUnions: true },
      ],
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/require-await': 'off',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      eqeqeq: 'error',
      '@typescript-eslint/no-this-alias': 'off',
      'no-bitwise': 'error',
      'no-restricted-syntax': [
        'error',
        {
          selector: "MethodDefinition[kind='get'] > PrivateIdentifier.key",
          message: 'A private getter is a call into the runtime each time: make it a method.',
        },
      ],
      'max-lines': ['error', { max: 700 }],
    },
  },
  { files: CODECS, rules: { 'no-bitwise': 'off' } },
  // node:test's test() returns a promise that the runner itself awaits.
  {
    files: ['**/*.test.ts', 'test/**', 'src/testing/**', 'bench/**'],
    rules: { '@typescript-eslint/no-floating-promises': 'off' },
  },
);
