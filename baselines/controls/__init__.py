"""Controls that no paper proposes. They show which part of a scheme's gain is due to its idea."""
