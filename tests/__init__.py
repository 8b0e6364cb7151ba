"""The charm's tests, and the throwaway node they run on."""
