@own-service
Feature: The service dies and comes back
  A machine loses power, a new version is rolled out. What was promised is kept, on a real engine as
  well: a reader goes on in the middle of a sentence and never learns how it came to the pause.

  Background:
    Given a service whose model is called "assistant"

  @ORCH-3203
  Scenario: Killed in the middle of a sentence
    When acme submits to "assistant"
      | task        | max_tokens | seed | sampling                      | prompt           |
      | undisturbed | 60         | 11   | {temperature: 0.9, top_k: 40} | Once upon a time |
    Then "undisturbed" ends well
    When acme submits to "assistant"
      | task        | max_tokens | seed | sampling                      | prompt           |
      | interrupted | 60         | 11   | {temperature: 0.9, top_k: 40} | Once upon a time |
    And "interrupted" is read up to token 4 and the connection breaks
    And the service is killed and started again
    And "interrupted" is read on
    Then "interrupted" ends well
    And "undisturbed" and "interrupted" read the same

  @ORCH-3203 @ORCH-3024
  Scenario: A client that heard nothing asks again after the crash
    When acme submits to "assistant"
      | task                       | max_tokens |
      | The lighthouse keeper said | 30         |
    And the service is killed and started again
    And "The lighthouse keeper said" is sent again
    Then "The lighthouse keeper said" is admitted
    And "The lighthouse keeper said" ends well

  @ORCH-3203
  Scenario: Stopped for an update
    When acme submits to "assistant"
      | task                 | max_tokens |
      | The old man and the  | 8          |
    Then "The old man and the" ends well
    When acme submits to "assistant"
      | task                      | max_tokens |
      | Still on the way there is | 40         |
    And "Still on the way there is" is read up to token 2 and the connection breaks
    And the service is stopped and started again
    And "Still on the way there is" is read on
    Then "Still on the way there is" ends well
    And "The old man and the" reads the same again, from the start
