"""Mathematical problems. Answers are compared by ``answers``, in the sandbox."""
